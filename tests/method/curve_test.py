import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from rd_jax.method.curve import (
    Curve,
    area_under_roc,
    average_precision,
    curve_points,
    image_curve,
    max_f1,
)

SCORES = {
    "distinct": lambda rng, n: rng.normal(size=n),
    "ties": lambda rng, n: rng.integers(0, 5, n),
    "constant": lambda _, n: np.zeros(n),
    "signed zeros": lambda rng, n: rng.choice([-0.0, 0.0, 1.0, -1.0], n),
    "outlier": lambda rng, n: np.append(rng.normal(size=n - 1), 1e30),
}


def literal_f1_max(scores: np.ndarray, labels: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(labels, scores)
    return float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)))


@pytest.mark.parametrize("scores_of", SCORES.values(), ids=SCORES.keys())
@pytest.mark.parametrize("anomalous", [0.01, 0.3, 0.9])
def test_figures_equal_scikit_learn(scores_of, anomalous: float) -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(999) < anomalous
    scores = scores_of(rng, 999).astype(np.float32)
    curve = image_curve(scores, labels)
    assert area_under_roc(curve) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    expected = average_precision_score(labels, scores)
    assert average_precision(curve) == pytest.approx(expected, abs=1e-12)
    assert max_f1(curve) == pytest.approx(literal_f1_max(scores, labels), abs=1e-12)


@pytest.mark.parametrize("scores_of", SCORES.values(), ids=SCORES.keys())
def test_the_points_rise_as_those_of_scikit_learn(scores_of) -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(500) < 0.3
    scores = scores_of(rng, 500)
    x, y = curve_points(image_curve(scores, labels)).T
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert (np.diff(x) >= 0).all()
    assert (np.diff(y) >= 0).all()
    expected_x, expected_y, _ = roc_curve(labels, scores)
    num_normal = (~labels).sum()
    between = (np.arange(num_normal) + 0.5) / num_normal  # the curves jump at whole numbers
    expected = np.interp(between, expected_x, expected_y)
    np.testing.assert_allclose(np.interp(between, x, y), expected, atol=1e-12)


def test_a_curve_ends_where_it_is_cut_also_on_a_jump_and_on_a_slope() -> None:
    curve = Curve(np.arange(4), *np.array([[6, 2, 0, 2], [0, 1, 1, 0], [0, 1, 1, 0]]))
    points = [[0, 0], [0.2, 0], [0.2, 0.5], [0.4, 1], [1, 1], [1, 1]]
    np.testing.assert_allclose(curve_points(curve), points)
    np.testing.assert_allclose(curve_points(curve, 0.2)[-2:], [[0.2, 0.5], [0.2, 0.5]])
    np.testing.assert_allclose(curve_points(curve, 0.3)[-2:], [[0.2, 0.5], [0.3, 0.75]])
    assert curve_points(curve, 0.1).tolist() == [[0, 0], [0.1, 0]]


@pytest.mark.parametrize("label", [False, True])
def test_a_single_class_has_no_curve(label: bool) -> None:
    curve = image_curve(np.arange(3.0), np.full(3, label))
    assert not curve.is_defined
    assert curve_points(curve).shape == (0, 2)
    assert curve_points(curve, 0.3).shape == (0, 2)


def test_more_samples_than_31_bits_count() -> None:
    normal, anomalous = np.array([2**33, 2**32, 0]), np.array([0, 2**31, 2**32])
    curve = Curve(np.arange(3), normal, anomalous, anomalous)
    total = 2**33 + 2**32
    expected = (2 / 3) * 1 + (1 / 3) * (1 - 2**32 / total / 2)
    assert area_under_roc(curve) == pytest.approx(expected, abs=1e-12)
    both = 2**31 + 2**32
    precision = (2 / 3) * 1 + (1 / 3) * both / (both + 2**32)
    assert average_precision(curve) == pytest.approx(precision, abs=1e-12)
    assert max_f1(curve) == pytest.approx(2 * 2**32 / (2**32 + both), abs=1e-12)
