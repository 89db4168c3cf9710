"""ROC curves over samples counted at the levels of their scores, and the figures read off them."""

from typing import NamedTuple

import numpy as np


class Curve(NamedTuple):
    """The samples of a test set, counted at K ascending levels; samples of one level tie."""

    normal: np.ndarray  # [K] number of normal samples
    anomalous: np.ndarray  # [K] number of anomalous samples
    weights: np.ndarray  # [K] how much these weigh in the true-positive rate, in any unit

    @property
    def is_defined(self) -> bool:
        """Return whether there are samples of both classes, which every figure needs."""
        return bool(self.normal.any() and self.anomalous.any())


def counted_at(
    levels: np.ndarray, labels: np.ndarray, num_levels: int, weights: np.ndarray | None = None
) -> Curve:
    """Return the curve of samples at `levels`, integers from 0; true labels are anomalous.

    `levels` and `labels` have any, but the same shape. `weights` are those of the anomalous
    samples, in their order; without them all weigh the same.
    """
    normal, anomalous = levels[~labels], levels[labels]
    return Curve(
        np.bincount(normal, minlength=num_levels),
        np.bincount(anomalous, minlength=num_levels),
        np.bincount(anomalous, weights, num_levels).astype(np.float64),
    )


def image_curve(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> Curve:
    """Return the exact curve, whose levels are `np.unique(scores)`: see `counted_at`."""
    distinct, levels = np.unique(scores, return_inverse=True)
    return counted_at(levels.reshape(labels.shape), labels, distinct.size, weights)


def curve_points(curve: Curve) -> np.ndarray:
    """Return the vertices [K, 2] from (0, 0) to (1, 1): false- and true-positive rate.

    The curve is aslant where normal and anomalous samples tie. There are no points if a class is
    empty.
    """
    if not curve.is_defined:
        return np.empty((0, 2))
    rises = curve.anomalous[::-1] > 0
    # Where only normal samples lie, the curve is flat: the end of each flat part will do.
    is_vertex = rises | np.append(rises[1:], True)
    counts = (np.cumsum(x[::-1]) for x in (curve.normal, curve.weights))
    rates = [x[is_vertex] / x[-1] for x in counts]
    return np.concatenate([[(0.0, 0.0)], np.stack(rates, 1)])


def up_to(points: np.ndarray, max_x: float) -> np.ndarray:
    """Return the part of a rising curve [K, 2] from x = 0 to `max_x`, interpolated there."""
    if not len(points):
        return points
    x, y = points.T
    inside = points[x <= max_x]
    limit = max(inside[-1, 1], np.interp(max_x, x, y))
    return np.concatenate([inside, [(max_x, limit)]])


def area_under_roc(curve: Curve, max_fpr: float = 1.0) -> float:
    """Return the area up to the false-positive rate `max_fpr`, divided by `max_fpr`."""
    x, y = up_to(curve_points(curve), max_fpr).T
    return float(np.trapezoid(y, x)) / max_fpr


def average_precision(curve: Curve) -> float:
    """Return the mean over anomalous samples of the precision at their score."""
    hits, false_alarms = _num_at_least(curve)
    precision = hits / np.maximum(hits + false_alarms, 1)
    return float(np.average(precision, weights=curve.weights))


def max_f1(curve: Curve) -> float:
    """Return the largest F1 over all thresholds."""
    hits, false_alarms = _num_at_least(curve)
    return float(np.max(2 * hits / (hits + false_alarms + curve.anomalous.sum())))


def _num_at_least(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Return how many anomalous and normal samples [K] lie at each level or higher."""
    anomalous, normal = (np.cumsum(x[::-1])[::-1] for x in (curve.anomalous, curve.normal))
    return anomalous, normal
