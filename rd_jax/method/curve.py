"""ROC curves of scored samples, and the figures computed from them."""

from typing import NamedTuple

import numpy as np


class Curve(NamedTuple):
    """How many samples of a test set have each of its K distinct scores. Equal scores tie."""

    scores: np.ndarray  # [K] ascending
    normal: np.ndarray  # [K] number of normal samples
    anomalous: np.ndarray  # [K] number of anomalous samples
    weights: np.ndarray  # [K] weight of the anomalous ones in the true-positive rate, any unit

    @property
    def is_defined(self) -> bool:
        """Return whether both classes have samples. Every figure needs both."""
        return bool(self.normal.any() and self.anomalous.any())

    def unweighted(self) -> "Curve":
        """Return the curve in which every anomalous sample weighs the same."""
        return self._replace(weights=self.anomalous)


def curve_of(
    scores: np.ndarray, normal: np.ndarray, anomalous: np.ndarray, weights: np.ndarray
) -> Curve:
    """Return the curve of N scores, given how many samples of each class have each score."""
    distinct, places = np.unique(scores, return_inverse=True)
    return Curve(distinct, *(np.bincount(places, x) for x in (normal, anomalous, weights)))


def image_curve(scores: np.ndarray, labels: np.ndarray) -> Curve:
    """Return the curve of samples with bool labels (true: anomalous) and equal weights."""
    labels = labels.ravel()
    return curve_of(scores.ravel(), ~labels, labels, labels)


def curve_points(curve: Curve, max_x: float = 1.0) -> np.ndarray:
    """Return points [., 2] from (0, 0) to x = `max_x`: false- and true-positive rate.

    Where normal and anomalous samples tie, the curve rises diagonally. The last point is
    interpolated. If a class is empty, there are no points.
    """
    if not curve.is_defined:
        return np.empty((0, 2))
    rises = curve.anomalous[::-1] > 0
    # Where only normal samples lie, the curve is flat. The end of each flat part is enough.
    is_vertex = rises | np.append(rises[1:], True)
    counts = (np.cumsum(x[::-1]) for x in (curve.normal, curve.weights))
    x, y = (np.append(0, of_class[is_vertex] / of_class[-1]) for of_class in counts)
    end = max(y[x <= max_x][-1], np.interp(max_x, x, y))
    return np.stack([np.append(x[x <= max_x], max_x), np.append(y[x <= max_x], end)], 1)


def area_under_roc(curve: Curve, max_fpr: float = 1.0) -> float:
    """Return the area up to the false-positive rate `max_fpr`, divided by `max_fpr`."""
    x, y = curve_points(curve, max_fpr).T
    return float(np.trapezoid(y, x)) / max_fpr


def average_precision(curve: Curve) -> float:
    """Return the mean over anomalous samples of the precision at their score."""
    hits, false_alarms = _num_at_least(curve)
    return float(np.average(hits / (hits + false_alarms), weights=curve.weights))


def max_f1(curve: Curve) -> float:
    """Return the largest F1 over all thresholds."""
    hits, false_alarms = _num_at_least(curve)
    return float(np.max(2 * hits / (hits + false_alarms + curve.anomalous.sum())))


def _num_at_least(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Return how many anomalous and normal samples [K] have each score or a higher one."""
    anomalous, normal = (np.cumsum(x[::-1])[::-1] for x in (curve.anomalous, curve.normal))
    return anomalous, normal
