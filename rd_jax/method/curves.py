"""Weighted ROC curves and what is read off them, exact with ties.

A curve is kept as seen from its anomalous samples: for each of them, how many normal samples lie
above it and how many lie level with it. Areas, precision and F1 follow in closed form.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Array = jax.Array | np.ndarray


class Roc(NamedTuple):
    """A ROC curve at the scores of the anomalous samples [P]; -inf scores are padding.

    Of JAX's arrays or NumPy's; samples of one score may be one entry.
    """

    weights: Array  # [P] share of each sample in the true-positive rate; sum 1, padding 0
    true_positives: Array  # [P] anomalous samples that score at least as high
    false_positives: Array  # [P] normal samples that score at least as high
    false_positives_above: Array  # [P] normal samples that score higher
    num_normal: Array  # [] normal samples


def _namespace(curve: Roc) -> Any:
    """jax.numpy, or for counts that JAX's integers do not hold, NumPy."""
    return np if isinstance(curve.weights, np.ndarray) else jnp


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


def roc_of_samples(anomalous: np.ndarray, normal: np.ndarray, weights: np.ndarray) -> Roc:
    """The curve of finite scores [P] that weigh `weights` [P] against normal ones, in NumPy."""
    normal = np.sort(normal)
    return Roc(
        weights / max(weights.sum(), 1),
        anomalous.size - np.searchsorted(np.sort(anomalous), anomalous, side="left"),
        normal.size - np.searchsorted(normal, anomalous, side="left"),
        normal.size - np.searchsorted(normal, anomalous, side="right"),
        np.array(normal.size),
    )


def roc_of_scores(scores: np.ndarray, labels: np.ndarray) -> Roc:
    """The curve of finite scores [N] with labels [N], true: anomalous; in NumPy."""
    anomalous = scores[labels]
    return roc_of_samples(anomalous, scores[~labels], np.ones(anomalous.size))


def area_under_roc(curve: Roc, max_fpr: float = 1.0) -> Array:
    """Area up to the false-positive rate `max_fpr`, divided by `max_fpr`; NaN for an empty class.

    The share of a sample is detected from the rate `above` on where no normal sample ties with
    it, and linearly between `above` and `level` where some do.
    """
    xp = _namespace(curve)
    num_normal = xp.maximum(curve.num_normal, 1)
    above, level = curve.false_positives_above / num_normal, curve.false_positives / num_normal
    tie = level - above
    partial_tie = xp.square(max_fpr - above) / (2 * xp.where(tie > 0, tie, 1))
    area = xp.where(level <= max_fpr, max_fpr - above - tie / 2, partial_tie)
    return _mean(curve, xp.where(above < max_fpr, area, 0)) / max_fpr


def area_under_precision_recall(curve: Roc) -> Array:
    """Average precision: mean over anomalous samples of the precision at their score."""
    return _mean(curve, curve.true_positives / (curve.true_positives + curve.false_positives))


def max_f1(curve: Roc) -> Array:
    """The largest F1 over all thresholds; it is always reached at an anomalous sample's score."""
    xp = _namespace(curve)
    num_anomalous = xp.max(xp.where(curve.weights > 0, curve.true_positives, 0), initial=0)
    f1 = 2 * curve.true_positives / (curve.true_positives + curve.false_positives + num_anomalous)
    return _nan_if_empty(curve, xp.max(xp.where(curve.weights > 0, f1, 0), initial=0))


def _mean(curve: Roc, values: Array) -> Array:
    """The weighted mean over the anomalous samples."""
    xp = _namespace(curve)
    mean = xp.sum(xp.where(curve.weights > 0, curve.weights * values, 0))
    return _nan_if_empty(curve, mean)


def _nan_if_empty(curve: Roc, value: Array) -> Array:
    xp = _namespace(curve)
    is_defined = xp.any(curve.weights > 0) & (curve.num_normal > 0)
    return xp.where(is_defined, value, xp.nan).astype(xp.float32)  # also with jax_enable_x64


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
