"""What normal images score: thresholds of images and pixels, and the colour scale of heatmaps."""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np


class Calibration(NamedTuple):
    """What the maps and scores of normal images say, of one arithmetic.

    An image is anomalous if its score is above `image_threshold`; its pixels are, if it is, where
    the map is above `pixel_threshold`. By the maximum as score, no pixel of a normal image lies
    above `map_high`, which is the image threshold. Without a hold-out there are no thresholds:
    images that were trained on score too low to set one.
    """

    source: str  # "holdout" or "train": which normal images these are
    num_images: int
    false_positive_rate: float  # of new normal images, as asked for
    image_threshold: float | None
    pixel_threshold: float | None
    map_low: float  # up to here heatmaps are calm, as 99% of normal pixels are
    map_high: float  # above, at full strength: a pixel alone makes its image anomalous
    kept_rate: float | None  # expected of new normal images; may be above what was asked
    pixel_false_positive_rate: float  # of these images' pixels, at most this fraction
    dtype: str  # that the scores were computed in


def exceeded_by(values: np.ndarray, num_above: int) -> float:
    """The smallest of `values` that at most so many of them exceed."""
    position = values.size - 1 - num_above
    return float(np.partition(values.ravel(), position)[position])


def num_exceeding(num_images: int, rate: float) -> int:
    """How many of so many normal scores may lie above a threshold that keeps `rate` on new ones.

    Split conformal prediction: with k of N above, a new one is with probability (k+1) / (N+1).
    Negative where N is too small for any threshold to keep the rate (below 1/rate - 1).
    """
    return math.floor(_exact(rate) * (num_images + 1)) - 1


def images_needed(rate: float) -> float:
    """How many held-out images it takes to keep a rate; of 0, infinity."""
    return math.ceil(1 / _exact(rate)) - 1 if rate else math.inf


def _exact(rate: float) -> Fraction:
    """As it was written: 0.29 of 100 are 29, which floats round down to 28."""
    return Fraction(repr(float(rate)))


def calibrate(
    scores: np.ndarray,
    maxima: np.ndarray,
    pixels: np.ndarray,
    *,
    is_holdout: bool,
    false_positive_rate: float,
    pixel_false_positive_rate: float,
    dtype: str,
) -> Calibration:
    """From scores [N] of normal images, their maps' `maxima` [N] and `pixels` [.] of these maps.

    At least one image, held out or trained on. Too few held-out ones for the rate give the highest
    score as threshold, and a `kept_rate` above the one asked for.
    """
    median, low = (float(value) for value in np.quantile(pixels, [0.5, 0.99]))
    known = (len(scores), false_positive_rate)
    rest = (pixel_false_positive_rate, dtype)
    if not is_holdout:
        high = low + 4 * max(low - median, 1e-6)
        return Calibration("train", *known, None, None, low, high, None, *rest)
    num_above = max(num_exceeding(len(scores), false_positive_rate), 0)
    high = exceeded_by(maxima, num_above)
    pixels_above = math.floor(_exact(pixel_false_positive_rate) * pixels.size)
    image, pixel = exceeded_by(scores, num_above), exceeded_by(pixels, pixels_above)
    scale = (min(low, high - 1e-6), high)
    kept_rate = (num_above + 1) / (len(scores) + 1)
    return Calibration("holdout", *known, image, min(pixel, high), *scale, kept_rate, *rest)


def with_threshold(calibration: Calibration, threshold: float, is_maximum: bool) -> Calibration:
    """Decided by a threshold of the user's, which by the maximum is one of pixels, too."""
    threshold = float(np.float32(threshold))  # as scores and maps are
    calibration = calibration._replace(image_threshold=threshold, kept_rate=None)
    if not is_maximum:
        return calibration
    pixel = calibration.pixel_threshold
    return calibration._replace(
        pixel_threshold=threshold if pixel is None else min(pixel, threshold),
        map_low=min(calibration.map_low, threshold - 1e-6),
        map_high=threshold,
    )


def metrics_at(
    threshold: float | None, scores: np.ndarray, labels: np.ndarray
) -> dict[str, float | None]:
    """Precision, recall and F1 of calling images with scores [N] above the threshold anomalous.

    None without a threshold, and where they are not defined: precision if no image is called
    anomalous, recall and F1 if none is (`labels` bool [N]).
    """
    called = scores > (math.inf if threshold is None else threshold)
    hits, num_called, num_anomalous = (int(x.sum()) for x in (called & labels, called, labels))
    is_defined = threshold is not None and num_anomalous > 0
    return {
        "image_precision": hits / num_called if num_called else None,
        "image_recall": hits / num_anomalous if is_defined else None,
        "image_f1": 2 * hits / (num_called + num_anomalous) if is_defined else None,
    }
