"""What a threshold promises, in words: for the command line, the tables and the page."""

from collections.abc import Sequence

from rd_jax.method.calibration import Calibration, images_needed, num_exceeding

NO_THRESHOLD = "No thresholds, as no images were held out (--config.holdout=0.1)"


def percent(rate: float) -> str:
    """A fraction as readers know it."""
    return f"{100 * rate:.3g}%"


def needs(rate: float) -> str:
    """How many held-out images it takes to promise a rate."""
    return f"{percent(rate)} needs {images_needed(rate)}" if rate else "none can promise 0%"


def promise(calibration: Calibration, categories: Sequence[str] = ()) -> str:
    """One sentence: which rate is kept on new normal images, and what the asked one needs.

    Where there is a choice, `categories` are those that the threshold is for.
    """
    count, asked = calibration.num_images, calibration.false_positive_rate
    if calibration.image_threshold is None:
        return NO_THRESHOLD
    text = f"Threshold {calibration.image_threshold:.4g} of scores in {calibration.dtype}"
    if calibration.kept_rate is None:
        return f"{text}, of which nothing is promised"
    if len(categories) > 1:
        text += f", one threshold for all of {', '.join(categories)}"
    elif categories:
        text += f", that of {categories[0]}"
    text += f": {percent(calibration.kept_rate)} of new normal images are expected above it"
    if num_exceeding(count, asked) >= 0:
        return f"{text}, by {count} held-out images"
    return f"{text}, the least that {count} held-out images can promise ({needs(asked)})"


def scale_is(calibration: Calibration | None) -> tuple[str, str]:
    """What the ends of the heatmaps' scale are; without a calibration, of a test set's maps."""
    if calibration is None:
        return "the median of these maps", "their maximum"
    images = {"holdout": "held-out normal images", "train": "the training images"}
    low = f"99 % of the pixels of {images[calibration.source]} are below"
    if calibration.map_high - calibration.map_low < 1e-5:
        low = "just below its end"
    if calibration.map_high == calibration.image_threshold:
        return low, "the threshold: such a pixel alone makes its image anomalous"
    if calibration.image_threshold is None:
        return low, "five times as far above their median; there is no threshold"
    return low, "the threshold that maxima would have; images are judged by their map's sum"
