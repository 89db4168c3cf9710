"""Thresholds for images and pixels, and the heatmaps' scale, from scores of normal images."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv

from rd_jax.method.curve import Curve

# The last digits of a score depend on batch size and device. A threshold is the score that sets it
# plus this share of it, so that the image with that score is normal everywhere.
MARGIN = 1e-4


class NormalScores(NamedTuple):
    """The scores of N normal images, from which thresholds are computed."""

    is_held_out: bool  # else trained on: too low to set a threshold
    scores: np.ndarray  # [N]
    maxima: np.ndarray  # [N] the maximum of each map
    pixels: np.ndarray  # [Q, 2] from all maps: see `pixel_table`
    num_added: int = 0  # how many of the N came after the training


class Thresholds(NamedTuple):
    """An image is anomalous if its score is above the image threshold.

    Its pixels are anomalous where they are above the pixel threshold. In a normal image all pixels
    are normal.
    """

    source: str  # "holdout" or "train": which normal images were scored
    num_images: int  # how many were scored
    false_positive_rate: float  # the rate asked for, on new normal images
    image_threshold: float | None  # None without held-out images
    pixel_threshold: float | None  # likewise
    map_low: float  # heatmaps have no colour up to here: `pixel_threshold` if there is one
    map_high: float  # heatmaps have full colour from here: twice that
    kept_rate: float | None  # the rate to expect; may be above the rate asked for
    pixel_false_positive_rate: float  # at most this share of the images' pixels is above
    possible_rate: float | None = None  # see `possible_rate`
    num_added: int = 0  # how many of the images came after the training


def num_exceeding(num_images: int, rate: float) -> int:
    """Return how many of the held-out scores may lie above a threshold that keeps `rate`.

    Split conformal prediction: if k of N held-out normal images score above a threshold, a new
    normal image does so with probability (k+1) / (N+1). The result is negative if N is below
    1/rate - 1: no threshold can keep the rate then.
    """
    return math.floor(_as_written(rate) * (num_images + 1)) - 1


def possible_rate(num_images: int, num_above: int) -> float:
    """Return an upper bound of the true rate, which holds in 95 of 100 draws of held-out images.

    `num_above` of the `num_images` drawn lie above the threshold. The share of all normal images
    above it then has the distribution Beta(num_above + 1, num_images - num_above).
    """
    return float(betaincinv(num_above + 1, num_images - num_above, 0.95))


def images_needed(rate: float) -> float:
    """Return how many held-out images a rate needs; infinity for 0."""
    return math.ceil(1 / _as_written(rate)) - 1 if rate else math.inf


def _as_written(rate: float) -> Fraction:
    """Return the rate as it is printed: 0.29 of 100 are 29, but floats round down to 28."""
    return Fraction(repr(float(rate)))


def pixel_table(pixels: Curve) -> np.ndarray:
    """Return a table [Q, 2]: the share of pixels above a value, descending, and that value.

    It has a row for 0 and for each rate of two significant digits from 1e-7 to 0.99: the lowest
    value (as `counted`) that at most this share of the pixels exceeds.
    """
    counts = pixels.normal + pixels.anomalous
    total = int(counts.sum())
    above = total - np.cumsum(counts)
    allowed = [0, *(digits * total // 10**e for e in range(2, 9) for digits in range(10, 100))]
    places = np.unique(np.searchsorted(-above, -np.array(allowed)))
    return np.stack([above[places] / total, pixels.scores[places]], 1)


def pooled(found: Sequence[NormalScores]) -> NormalScores:
    """Join the scores of several categories. Shares of pixels are exact or too high."""
    values = np.unique(np.concatenate([normal.pixels[:, 1] for normal in found]))
    shares = np.zeros(len(values))
    for normal in found:
        above, of_table = np.concatenate([[(1, -np.inf)], normal.pixels]).T
        at = np.searchsorted(of_table, values, side="right") - 1
        shares += above[at] * len(normal.scores)
    is_held_out, scores, maxima, _, num_added = zip(*found, strict=True)
    scores, maxima = np.concatenate(scores), np.concatenate(maxima)
    table = np.stack([shares / len(scores), values], 1)
    return NormalScores(all(is_held_out), scores, maxima, table, sum(num_added))


def thresholds_of(
    normal: NormalScores, false_positive_rate: float, pixel_false_positive_rate: float
) -> Thresholds:
    """Return thresholds that keep these rates, each in [0, 1), from at least one normal image.

    If there are too few held-out images for the rate, the highest score is the threshold, and
    `kept_rate` is above the rate asked for. An image threshold is the score that sets it, plus the
    relative `MARGIN`. A pixel threshold is exact, or too high by less than 1 part in 65536.
    """
    count = len(normal.scores)
    known, pixel_rate = (count, false_positive_rate), pixel_false_positive_rate
    if not normal.is_held_out:
        middle, low = (_value_exceeded_by(normal.pixels, rate) for rate in (0.5, 0.01))
        high = low + 4 * max(low - middle, 1e-6)
        return Thresholds("train", *known, None, None, low, high, None, pixel_rate)
    num_above = max(num_exceeding(count, false_positive_rate), 0)
    image, highest = (
        float(np.float32(score + MARGIN * abs(score)))
        for score in (np.sort(x)[count - 1 - num_above] for x in (normal.scores, normal.maxima))
    )
    pixel = min(_value_exceeded_by(normal.pixels, pixel_rate), highest)
    rates = (num_above + 1) / (count + 1), pixel_rate, possible_rate(count, num_above)
    return Thresholds("holdout", *known, image, pixel, *_scale(pixel), *rates, normal.num_added)


def _scale(pixel_threshold: float) -> tuple[float, float]:
    """Return the value where a heatmap's colours begin, and the value of full colour."""
    return pixel_threshold, max(2 * pixel_threshold, pixel_threshold + 1e-6)


def _value_exceeded_by(table: np.ndarray, rate: float) -> float:
    """Return the lowest value of a `pixel_table` that at most this share of pixels exceeds."""
    return float(table[table[:, 0] <= rate, 1].min())


def with_threshold(thresholds: Thresholds, threshold: float, is_maximum: bool) -> Thresholds:
    """Return the thresholds with the image threshold replaced by the user's.

    If the score is the map's maximum, the pixel threshold is lowered to it where it is higher.
    """
    threshold = float(np.float32(threshold))  # as scores and maps are
    thresholds = thresholds._replace(image_threshold=threshold, kept_rate=None, possible_rate=None)
    if not is_maximum:
        return thresholds
    pixel = thresholds.pixel_threshold
    pixel = threshold if pixel is None else min(pixel, threshold)
    low, high = _scale(pixel)
    return thresholds._replace(pixel_threshold=pixel, map_low=low, map_high=high)


def metrics_at(
    threshold: float | None, scores: np.ndarray, labels: np.ndarray
) -> dict[str, float | None]:
    """Return precision, recall and F1 if images that score above the threshold are anomalous.

    `scores` and bool `labels` are [N]. All are None without a threshold. Recall is None without
    anomalous images. Precision and F1 are None without images of both classes. Precision is None if
    no image is called anomalous.
    """
    called = scores > (math.inf if threshold is None else threshold)
    hits, num_called, num_anomalous = (int(x.sum()) for x in (called & labels, called, labels))
    is_judged, has_both = threshold is not None, 0 < num_anomalous < len(labels)
    return {
        "image_precision": hits / num_called if num_called and has_both else None,
        "image_recall": hits / num_anomalous if is_judged and num_anomalous else None,
        "image_f1": 2 * hits / (num_called + num_anomalous) if is_judged and has_both else None,
    }
