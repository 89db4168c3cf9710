"""Thresholds in words: for the command lines, the tables and the page."""

from collections.abc import Sequence

from rd_jax.method.thresholds import Thresholds, images_needed, num_exceeding


def percent(rate: float) -> str:
    """Return a fraction as readers know it."""
    return f"{100 * rate:.3g}%"


def needs(rate: float) -> str:
    """Return how many held-out images it takes to keep a rate."""
    return f"{percent(rate)} needs {images_needed(rate)}" if rate else "none can promise 0%"


def rate_in_words(thresholds: Thresholds | None, categories: Sequence[str] = ()) -> str:
    """Return one sentence: the threshold, the rate it keeps, and what the asked one needs.

    `categories` are those that the threshold is for; name them where there is a choice.
    """
    if thresholds is None or thresholds.image_threshold is None:
        return "No thresholds, as no images were held out (--config.holdout=0.1)"
    count, asked = thresholds.num_images, thresholds.false_positive_rate
    text = f"Threshold {thresholds.image_threshold:.4g}"
    if thresholds.kept_rate is None:
        return f"{text}, of which nothing is promised"
    if len(categories) > 1:
        text += f", one threshold for all of {', '.join(categories)}"
    elif categories:
        text += f", that of {categories[0]}"
    text += f": {percent(thresholds.kept_rate)} of new normal images are expected above it"
    if num_exceeding(count, asked) >= 0:
        return f"{text}, by {count} held-out images"
    return f"{text}, the least that {count} held-out images can promise ({needs(asked)})"
