import numpy as np
import pytest
from sklearn.metrics import roc_curve

from rd_jax.method.counts import counted, no_pixels, pixel_curve, region_curve
from rd_jax.method.curves import curve_points, labelled_roc, up_to
from rd_jax.method.metrics import aupro, auroc
from rd_jax.report.gallery import thinned


def draw_scores(levels: int | None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.random(500) < 0.3
    scores = rng.normal(size=500) + labels
    return (np.round(scores * levels) / levels if levels else scores).astype(np.float32), labels


def draw_maps(levels: int | None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    masks = np.zeros((3, 24, 24), bool)
    masks[0, 2:5, 2:9] = masks[0, 15:20, 10:12] = masks[1, 5, 5] = True
    maps = rng.normal(size=masks.shape) + masks
    return (np.round(maps * levels) / levels if levels else maps).astype(np.float32), masks


@pytest.mark.parametrize("levels", [None, 4, 1])
def test_the_area_under_the_points_is_the_auroc(levels: int | None) -> None:
    scores, labels = draw_scores(levels)
    x, y = curve_points(labelled_roc(scores, labels)).T
    assert np.trapezoid(y, x) == pytest.approx(float(auroc(scores, labels)), abs=1e-6)
    assert (np.diff(x) >= 0).all()
    assert (np.diff(y) >= 0).all()


@pytest.mark.parametrize("levels", [None, 4, 1])
def test_the_curve_is_that_of_scikit_learn(levels: int | None) -> None:
    scores, labels = draw_scores(levels)
    x, y = curve_points(labelled_roc(scores, labels)).T
    expected_x, expected_y, _ = roc_curve(labels, scores)
    num_normal = (~labels).sum()
    between = (np.arange(num_normal) + 0.5) / num_normal  # the curves jump at whole numbers
    expected = np.interp(between, expected_x, expected_y)
    np.testing.assert_allclose(np.interp(between, x, y), expected, atol=1e-5)


@pytest.mark.parametrize("levels", [None, 4, 1])
@pytest.mark.parametrize("max_fpr", [0.05, 0.3, 1.0])
def test_the_area_under_the_pro_curve_is_the_aupro(levels: int | None, max_fpr: float) -> None:
    maps, masks = draw_maps(levels)
    x, y = up_to(curve_points(region_curve(counted(no_pixels(), maps, masks))), max_fpr).T
    assert x[-1] == pytest.approx(max_fpr)
    area = np.trapezoid(y, x) / max_fpr
    assert area == pytest.approx(float(aupro(maps, masks, max_fpr)), abs=1e-5)


def test_thinning_hardly_moves_the_curve() -> None:
    maps, masks = draw_maps(None)
    points = curve_points(pixel_curve(counted(no_pixels(), maps, masks)))
    few = thinned(points, 40)
    assert len(points) > 60
    assert len(few) <= 40
    np.testing.assert_array_equal(few[[0, -1]], points[[0, -1]])
    assert np.trapezoid(few[:, 1], few[:, 0]) == pytest.approx(
        np.trapezoid(points[:, 1], points[:, 0]), abs=0.02
    )
    np.testing.assert_array_equal(thinned(points, len(points)), points)


def test_a_flat_curve_can_be_thinned() -> None:
    flat = np.stack([np.linspace(0, 1, 50), np.zeros(50)], 1)
    few = thinned(flat, 5)
    np.testing.assert_array_equal(few[[0, -1]], flat[[0, -1]])


@pytest.mark.parametrize("label", [False, True])
def test_a_single_class_has_no_curve(label: bool) -> None:
    curve = labelled_roc(np.arange(3.0), np.full(3, label))
    assert curve_points(curve).shape == (0, 2)
    assert up_to(curve_points(curve), 0.3).shape == (0, 2)
