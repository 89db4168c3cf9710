"""Points of ROC and PRO curves, to draw; the areas are those of `metrics`."""

import numpy as np

from rd_jax.metrics import Roc


def curve_points(curve: Roc, weights: np.ndarray | None = None) -> np.ndarray:
    """All vertices [K, 2] of a curve: false-positive rate, true-positive rate; none if undefined.

    `weights` [P], one for each anomalous sample, sum to 1 (default: all alike). The trapezoids
    under the points are `metrics.area_under_roc`.
    """
    is_sample, num_normal = np.asarray(curve.is_sample), int(curve.num_normal)
    if not is_sample.any() or not num_normal:
        return np.empty((0, 2), np.float32)
    order, above, level = (
        np.asarray(values)[is_sample]
        for values in (curve.true_positives, curve.false_positives_above, curve.false_positives)
    )
    # Samples of one score are one step of the curve: aslant where normal samples tie with them.
    _, first, step = np.unique(order, return_index=True, return_inverse=True)
    if weights is None:
        weights = np.full(order.size, 1 / order.size)
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


def thinned(points: np.ndarray, num_points: int) -> np.ndarray:
    """At most so many of the points [K, 2] of a rising curve, evenly spaced along it."""
    if len(points) <= num_points:
        return points
    steps = np.abs(np.diff(points, axis=0, prepend=points[:1]))
    # Relative to the extent of each axis; a curve may be flat.
    way = np.cumsum((steps / np.maximum(np.ptp(points, axis=0), 1e-12)).sum(1))
    nearest = np.searchsorted(way, np.linspace(0, way[-1], num_points))
    return points[np.unique(nearest)]
