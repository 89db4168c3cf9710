"""Threshold-free metrics, exact with ties, all read off one weighted ROC curve.

The curve is kept as seen from its anomalous samples: for each of them, how many normal samples
lie above it and how many lie level with it. Areas, precision and F1 follow in closed form.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy import ndimage


class Roc(NamedTuple):
    """A ROC curve at the scores of the anomalous samples [P]; -inf scores are padding."""

    weights: jax.Array  # [P] share of each sample in the true-positive rate; sum 1, padding 0
    true_positives: jax.Array  # [P] anomalous samples that score at least as high
    false_positives: jax.Array  # [P] normal samples that score at least as high
    false_positives_above: jax.Array  # [P] normal samples that score higher
    num_normal: jax.Array  # [] normal samples


def _sortable(scores: jax.Array) -> jax.Array:
    """float32 -> int32 of the same order; on CPU, XLA sorts integers five times faster."""
    scores = jnp.where(scores == 0, 0, scores).astype(jnp.float32)  # -0 and 0 are a tie
    bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@jax.jit
def roc(anomalous: jax.Array, normal: jax.Array) -> Roc:
    """The curve of anomalous scores [P] against normal scores [N], float32; all weigh alike."""
    is_sample = anomalous > -jnp.inf
    num_normal = jnp.sum(normal > -jnp.inf)
    anomalous, normal = _sortable(anomalous), jnp.sort(_sortable(normal))

    def num_at_least(ascending: jax.Array) -> jax.Array:
        return ascending.size - jnp.searchsorted(ascending, anomalous, side="left")

    return Roc(
        is_sample.astype(jnp.int32) / jnp.maximum(jnp.sum(is_sample), 1),
        num_at_least(jnp.sort(anomalous)),
        num_at_least(normal),
        normal.size - jnp.searchsorted(normal, anomalous, side="right"),
        num_normal,
    )


def labelled_roc(scores: ArrayLike, labels: ArrayLike) -> Roc:
    """The curve of scores with labels, any shape; not a single sample if one is not finite."""
    scores, labels = jnp.ravel(scores).astype(jnp.float32), jnp.ravel(labels).astype(bool)
    if scores.shape != labels.shape:
        raise ValueError(f"{scores.size} scores for {labels.size} labels")
    scores = jnp.where(jnp.all(jnp.isfinite(scores)), scores, -jnp.inf)
    return roc(jnp.where(labels, scores, -jnp.inf), jnp.where(labels, -jnp.inf, scores))


def _padded(values: np.ndarray, padding: float = -np.inf) -> np.ndarray:
    """Padded to one of a few sizes per octave, so that few programs are compiled."""
    step = max(1024, 2 ** (values.size.bit_length() - 4))
    return np.pad(values, (0, -values.size % step), constant_values=padding)


def padded_roc(values: np.ndarray, labels: np.ndarray) -> Roc:
    """The curve of finite maps with masks, or of scores with labels; compiled for few sizes."""
    if values.shape != labels.shape:
        raise ValueError(f"maps {values.shape} and masks {labels.shape} differ in shape")
    if not np.isfinite(values).all():
        raise ValueError("the anomaly maps hold values that are not finite")
    return roc(_padded(values[labels]), _padded(values[~labels]))


def per_region(curve: Roc, masks: np.ndarray) -> Roc:
    """A `padded_roc` of maps in which every 8-connected region of masks [N, H, W] weighs the same.

    So does every pixel within a region: its true-positive rate is the per-region overlap.
    """
    eight_connected = np.ones((3, 3), bool)
    weights, num_regions = [np.empty(0)], 0
    for mask in masks:
        labels, count = ndimage.label(mask, eight_connected)
        weights.append(1 / np.bincount(labels.ravel())[labels[mask]])
        num_regions += count
    per_pixel = np.concatenate(weights) / max(num_regions, 1)
    return curve._replace(weights=jnp.asarray(_padded(per_pixel.astype(np.float32), 0)))


@jax.jit
def area_under_roc(curve: Roc, max_fpr: float = 1.0) -> jax.Array:
    """Area up to the false-positive rate `max_fpr`, divided by `max_fpr`; NaN for an empty class.

    The share of a sample is detected from the rate `above` on where no normal sample ties with
    it, and linearly between `above` and `level` where some do.
    """
    above = curve.false_positives_above / curve.num_normal
    level = curve.false_positives / curve.num_normal
    tie = level - above
    partial_tie = jnp.square(max_fpr - above) / (2 * jnp.where(tie > 0, tie, 1))
    area = jnp.where(level <= max_fpr, max_fpr - above - tie / 2, partial_tie)
    return _mean(curve, jnp.where(above < max_fpr, area, 0)) / max_fpr


@jax.jit
def area_under_precision_recall(curve: Roc) -> jax.Array:
    """Average precision: mean over anomalous samples of the precision at their score."""
    return _mean(curve, curve.true_positives / (curve.true_positives + curve.false_positives))


@jax.jit
def max_f1(curve: Roc) -> jax.Array:
    """The largest F1 over all thresholds; it is always reached at an anomalous sample's score."""
    num_anomalous = jnp.sum(curve.weights > 0)
    f1 = 2 * curve.true_positives / (curve.true_positives + curve.false_positives + num_anomalous)
    return _nan_if_empty(curve, jnp.max(jnp.where(curve.weights > 0, f1, 0), initial=0))


def _mean(curve: Roc, values: jax.Array) -> jax.Array:
    """The weighted mean over the anomalous samples."""
    mean = jnp.sum(jnp.where(curve.weights > 0, curve.weights * values, 0))
    return _nan_if_empty(curve, mean)


def _nan_if_empty(curve: Roc, value: jax.Array) -> jax.Array:
    is_defined = jnp.any(curve.weights > 0) & (curve.num_normal > 0)
    return jnp.where(is_defined, value, jnp.nan).astype(jnp.float32)  # also with jax_enable_x64


@jax.jit
def auroc(scores: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Area under the ROC curve of `scores` with `labels` (true: anomalous), exact with ties.

    Both have any, but the same shape. Returns a float32 scalar; NaN if a class is empty or a
    score is not finite. Raises ValueError if the sizes differ. Equals sklearn's roc_auc_score.
    """
    return area_under_roc(labelled_roc(scores, labels))


@jax.jit
def average_precision(scores: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Average precision, with the conventions of `auroc`; sklearn's average_precision_score."""
    return area_under_precision_recall(labelled_roc(scores, labels))


@jax.jit
def f1_max(scores: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The largest F1 over all thresholds, with the conventions of `auroc`."""
    return max_f1(labelled_roc(scores, labels))


def aupro(maps: ArrayLike, masks: ArrayLike, max_fpr: float = 0.3) -> jax.Array:
    """Area under the per-region-overlap curve of maps [N, H, W] with masks [N, H, W].

    Dataset-level: mean over all 8-connected regions of the covered fraction, against the
    false-positive rate over all normal pixels, integrated to `max_fpr` with interpolation there,
    divided by `max_fpr` (Bergmann et al., MVTec AD, section 4.2). Returns a float32 scalar; NaN
    without a region or a normal pixel. Raises ValueError for unequal shapes or values that are
    not finite. The regions are found on the host, so this does not trace under jit.
    """
    maps, masks = np.asarray(maps, np.float32), np.asarray(masks, bool)
    return area_under_roc(per_region(padded_roc(maps, masks), masks), max_fpr)


class Metric(NamedTuple):
    """What a metric is called where people read it, and what it is of which curve."""

    label: str
    over: Literal["scores", "sums", "maxima", "pixels", "regions"]  # the first three: of images
    of: Callable[[Roc], jax.Array]


METRICS = {
    "image_auroc": Metric("image AUROC", "scores", area_under_roc),
    "pixel_auroc": Metric("pixel AUROC", "pixels", area_under_roc),
    "aupro": Metric("AUPRO", "regions", partial(area_under_roc, max_fpr=0.3)),
    "image_ap": Metric("image AP", "scores", area_under_precision_recall),
    "image_f1max": Metric("image F1 max", "scores", max_f1),
    "pixel_ap": Metric("pixel AP", "pixels", area_under_precision_recall),
    "pixel_f1max": Metric("pixel F1 max", "pixels", max_f1),
    "image_auroc_sum": Metric("image AUROC (sum)", "sums", area_under_roc),
    "image_auroc_max": Metric("image AUROC (maximum)", "maxima", area_under_roc),
}


def metrics_of(
    maps: np.ndarray, scores: np.ndarray, labels: np.ndarray, masks: np.ndarray | None
) -> dict[str, float | None]:
    """All `METRICS` of a test split, as fractions; None where a metric is not defined.

    `maps` is float32 [N, H, W], `scores` float32 [N], `labels` bool [N] (true: anomalous),
    `masks` bool [N, H, W].
    """
    curves: dict[str, Roc] = {}
    if len(maps):
        per_image = {"scores": scores, "sums": maps.sum((1, 2)), "maxima": maps.max((1, 2))}
        curves = {over: padded_roc(values, labels) for over, values in per_image.items()}
        if masks is not None:
            curves["pixels"] = padded_roc(maps, masks)
            curves["regions"] = per_region(curves["pixels"], masks)
    values = {
        name: float(metric.of(curves[metric.over])) if metric.over in curves else math.nan
        for name, metric in METRICS.items()
    }
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def curve_points(curve: Roc) -> np.ndarray:
    """All vertices [K, 2] of a curve: false-positive rate, true-positive rate; none if undefined.

    The trapezoids under the points are `area_under_roc`.
    """
    is_sample, num_normal = np.asarray(curve.weights) > 0, int(curve.num_normal)
    if not is_sample.any() or not num_normal:
        return np.empty((0, 2), np.float32)
    weights, order, level, above = (np.asarray(values)[is_sample] for values in curve[:4])
    # Samples of one score are one step of the curve: aslant where normal samples tie with them.
    _, first, step = np.unique(order, return_index=True, return_inverse=True)
    rates = np.cumsum(np.bincount(step, weights))
    before_and_after = (np.concatenate([[0], rates[:-1]]), rates)
    x = np.stack([above[first], level[first]], 1).ravel() / num_normal
    y = np.stack(before_and_after, 1).ravel()
    return np.concatenate([[(0, 0)], np.stack([x, y], 1), [(1, 1)]]).astype(np.float32)


def up_to(points: np.ndarray, max_x: float) -> np.ndarray:
    """The part of a rising curve [K, 2] from x = 0 to `max_x`, interpolated there."""
    if not len(points):
        return points
    x, y = points.T
    inside = points[x <= max_x]
    limit = max(inside[-1, 1], np.interp(max_x, x, y))
    return np.concatenate([inside, [(max_x, limit)]]).astype(np.float32)
