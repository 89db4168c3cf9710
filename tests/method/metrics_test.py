import jax
import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from rd_jax import aupro, auroc
from rd_jax.method.metrics import METRICS, average_precision, f1_max, metrics_of


def literal_aupro(maps: np.ndarray, masks: np.ndarray, max_fpr: float) -> float:
    """AUPRO by its definition: every threshold, every region, trapezoids."""
    regions = []
    for i, mask in enumerate(masks):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [(i, labels == k) for k in range(1, count + 1)]
    normal = maps[~masks]
    fprs, overlaps = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        fprs.append(float((normal >= threshold).mean()))
        overlaps.append(float(np.mean([(maps[i][r] >= threshold).mean() for i, r in regions])))
    inside = np.array(fprs) <= max_fpr
    at_limit = np.interp(max_fpr, fprs, overlaps)
    x = np.append(np.array(fprs)[inside], max_fpr)
    y = np.append(np.array(overlaps)[inside], at_limit)
    return float(np.trapezoid(y, x) / max_fpr)


def literal_f1_max(scores: np.ndarray, labels: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(labels, scores)
    return float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)))


SCORES = {
    "distinct": lambda rng, n: rng.normal(size=n),
    "ties": lambda rng, n: rng.integers(0, 5, n),
    "constant": lambda _, n: np.zeros(n),
    "signed zeros": lambda rng, n: rng.choice([-0.0, 0.0, 1.0, -1.0], n),
    "outlier": lambda rng, n: np.append(rng.normal(size=n - 1), 1e30),
}


@pytest.mark.parametrize("scores_of", SCORES.values(), ids=SCORES.keys())
@pytest.mark.parametrize("anomalous", [0.01, 0.3, 0.9])
def test_metrics_equal_scikit_learn(scores_of, anomalous) -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(999) < anomalous
    scores = scores_of(rng, 999).astype(np.float32)
    assert float(auroc(scores, labels)) == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    expected = average_precision_score(labels, scores)
    assert float(average_precision(scores, labels)) == pytest.approx(expected, abs=1e-6)
    assert float(f1_max(scores, labels)) == pytest.approx(literal_f1_max(scores, labels), abs=1e-6)


def test_auroc_traces_inside_other_programs() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(3, 50)).astype(np.float32), rng.random((3, 50)) < 0.5
    expected = [roc_auc_score(label, score) for label, score in zip(labels, scores, strict=True)]
    np.testing.assert_allclose(jax.jit(jax.vmap(auroc))(scores, labels), expected, atol=1e-6)


def draw_maps(levels: int | None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    masks = np.zeros((4, 24, 24), bool)
    masks[0, 2:5, 2:9] = masks[0, 15:20, 10:12] = masks[1, 5, 5] = masks[2, 3:20, 4:6] = True
    masks[0, 5, 9] = True  # touches the first region at a corner: 8-connected
    maps = rng.normal(size=masks.shape) + masks
    if levels:
        maps = np.round(maps * levels) / levels
    return maps.astype(np.float32), masks


@pytest.mark.parametrize("levels", [None, 4, 1])
@pytest.mark.parametrize("max_fpr", [0.05, 0.3, 1.0])
def test_aupro_equals_its_definition(levels: int | None, max_fpr: float) -> None:
    maps, masks = draw_maps(levels)
    expected = literal_aupro(maps, masks, max_fpr)
    assert float(aupro(maps, masks, max_fpr)) == pytest.approx(expected, abs=1e-5)


def test_aupro_of_constant_maps_is_that_of_chance() -> None:
    _, masks = draw_maps(None)
    assert float(aupro(np.ones(masks.shape), masks)) == pytest.approx(0.15, abs=1e-6)


@pytest.mark.parametrize("levels", [None, 4])
def test_pixel_metrics_equal_scikit_learn(levels: int | None) -> None:
    maps, masks = draw_maps(levels)
    scores, has_anomaly = maps.max((1, 2)), masks.any((1, 2))
    values = metrics_of(maps, scores, has_anomaly, masks)
    assert list(values) == list(METRICS)
    flat, labels = maps.ravel(), masks.ravel()
    assert values["pixel_auroc"] == pytest.approx(roc_auc_score(labels, flat), abs=1e-6)
    assert values["pixel_ap"] == pytest.approx(average_precision_score(labels, flat), abs=1e-6)
    assert values["pixel_f1max"] == pytest.approx(literal_f1_max(flat, labels), abs=1e-6)
    assert values["aupro"] == pytest.approx(literal_aupro(maps, masks, 0.3), abs=1e-5)


def test_millions_of_pixels_stay_exact() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((32, 256, 256), bool)
    masks[:, 100:140, 50:120] = True
    maps = (rng.gamma(2, size=masks.shape) + masks).astype(np.float32)
    values = metrics_of(maps, maps.max((1, 2)), np.arange(32) < 16, masks)
    expected = roc_auc_score(masks.ravel(), maps.ravel())
    assert values["pixel_auroc"] == pytest.approx(expected, abs=1e-6)
    expected = average_precision_score(masks.ravel(), maps.ravel())
    assert values["pixel_ap"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("label", [False, True])
def test_a_single_class_has_no_metrics(label: bool) -> None:
    maps, masks = np.ones((3, 4, 4), np.float32), np.full((3, 4, 4), label)
    values = metrics_of(maps, np.arange(3.0), np.full(3, label), masks)
    assert values == dict.fromkeys(METRICS)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_never_give_a_figure(bad: float) -> None:
    assert np.isnan(auroc(np.array([0, 1, bad]), np.array([0, 1, 1])))
    maps = np.ones((1, 4, 4), np.float32)
    maps[0, 0, 0] = bad
    with pytest.raises(ValueError, match="not finite"):
        aupro(maps, np.eye(4, dtype=bool)[None])
