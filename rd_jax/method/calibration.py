"""What normal images score: decision thresholds and the colour scale of heatmaps."""

import math
from typing import NamedTuple

import numpy as np


class Calibration(NamedTuple):
    """What the maps and scores of normal images say; kept with the last checkpoint.

    An image (a pixel) is called anomalous if its score (its value in the map) is above the
    threshold. Without a hold-out there are no thresholds: images that were trained on score too
    low to set one.
    """

    source: str  # "holdout" or "train": which normal images these are
    num_images: int
    false_positive_rate: float  # at most this fraction of them is above each threshold
    image_threshold: float | None
    pixel_threshold: float | None
    map_low: float  # up to here heatmaps are calm, as 99% of normal pixels are
    map_high: float  # here at full strength: five times as far above the median of normal pixels


def threshold_at(values: np.ndarray, false_positive_rate: float) -> float:
    """The smallest of `values` that at most this fraction of them exceeds."""
    num_above = round(false_positive_rate * values.size)
    if num_above / values.size > false_positive_rate:  # a floor would take 0.29 * 100 for 28
        num_above -= 1
    position = values.size - 1 - num_above
    return float(np.partition(values.ravel(), position)[position])


def calibrate(
    maps: np.ndarray, scores: np.ndarray, false_positive_rate: float, is_holdout: bool
) -> Calibration:
    """From maps [N, H, W] and scores [N] of normal images, N > 0, held out or trained on."""
    median, low = (float(value) for value in np.quantile(maps, [0.5, 0.99]))
    return Calibration(
        "holdout" if is_holdout else "train",
        len(scores),
        false_positive_rate,
        threshold_at(scores, false_positive_rate) if is_holdout else None,
        threshold_at(maps, false_positive_rate) if is_holdout else None,
        low,
        low + 4 * max(low - median, 1e-6),
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
