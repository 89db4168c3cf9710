import logging
from collections.abc import Callable
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from rd_jax import aupro, auroc
from rd_jax.method.curve import area_under_roc, curve_points
from rd_jax.method.metrics import (
    METRICS,
    counted,
    median,
    metrics_of,
    no_pixels,
)
from tests.method.curve_test import SCORES, literal_f1_max


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


def literal_auroc(scores: list, labels: list) -> float:
    """By its definition, in the numbers' own arithmetic."""
    anomalous, normal = (
        [s for s, one in zip(scores, labels, strict=True) if one == wanted] for wanted in (1, 0)
    )
    won = sum(Fraction(1 if a > n else 0.5 if a == n else 0) for a in anomalous for n in normal)
    return float(won / (len(anomalous) * len(normal)))


@pytest.mark.parametrize("scores_of", SCORES.values(), ids=SCORES.keys())
@pytest.mark.parametrize("anomalous", [0.01, 0.3, 0.9])
def test_auroc_equals_scikit_learn(scores_of: Callable, anomalous: float) -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(999) < anomalous
    scores = scores_of(rng, 999).astype(np.float32)
    expected = pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    for given in (scores, jnp.asarray(scores), scores.reshape(27, 37)):
        assert float(auroc(given, labels.reshape(given.shape))) == expected
    assert float(auroc(scores, labels.astype(np.int8))) == expected


def test_auroc_traces_inside_other_programs() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(3, 50)).astype(np.float32), rng.random((3, 50)) < 0.5
    expected = [roc_auc_score(label, score) for label, score in zip(labels, scores, strict=True)]
    np.testing.assert_allclose(jax.jit(jax.vmap(auroc))(scores, labels), expected, atol=1e-6)


@pytest.mark.parametrize(
    "scores",
    [
        [1 + 1e-12, 1, 1 + 2e-12, 1 - 1e-12],
        [2**53 + 1, 2**53, 2**40, 2**53 + 3],
        [1e39, 1e300, -1e39, 1e38],
        [True, False, True, True],
    ],
)
def test_auroc_ranks_in_the_precision_of_its_input(scores: list) -> None:
    labels = [1, 0, 1, 0]
    expected = literal_auroc(scores, labels)
    assert float(auroc(np.array(scores), labels)) == expected
    with jax.enable_x64(True):
        assert float(auroc(np.array(scores), labels)) == expected
        assert float(auroc(jnp.asarray(scores), jnp.asarray(labels))) == expected


@pytest.mark.parametrize("labels", [[-1, 1, 1], [0, 1, 2], [0, np.nan, 1], [0, 255, 0]])
def test_labels_that_are_not_0_or_1_are_refused(labels: list) -> None:
    with pytest.raises(ValueError, match=r"labels must be bool, or 0 \(normal\) and 1"):
        auroc(np.arange(3.0), labels)
    with pytest.raises(ValueError, match="masks must be bool, or 0"):
        aupro(np.ones((1, 1, 3)), np.array([[labels]]))


def test_scores_and_labels_of_unequal_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scores \(3,\) and labels \(4,\) differ in shape"):
        auroc(np.arange(3.0), np.zeros(4, bool))
    with pytest.raises(ValueError, match=r"maps \(1, 4, 4\) and masks \(4, 4\)"):
        aupro(np.zeros((1, 4, 4)), np.eye(4, dtype=bool))


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1]])
def test_auroc_without_one_of_the_classes_is_nan(labels: list) -> None:
    assert np.isnan(auroc(np.arange(float(len(labels))), np.array(labels, bool)))


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
def test_aupro_equals_its_definition_and_the_area_under_its_curve(
    levels: int | None, max_fpr: float
) -> None:
    maps, masks = draw_maps(levels)
    expected = literal_aupro(maps, masks, max_fpr)
    assert float(aupro(maps, masks, max_fpr)) == pytest.approx(expected, abs=1e-12)
    points = curve_points(counted(no_pixels(), maps, masks), max_fpr)
    assert points[-1, 0] == max_fpr
    assert np.trapezoid(points[:, 1], points[:, 0]) / max_fpr == pytest.approx(expected, abs=1e-5)


def test_aupro_of_constant_maps_is_that_of_chance() -> None:
    _, masks = draw_maps(None)
    assert aupro(np.ones(masks.shape), masks) == pytest.approx(0.15, abs=1e-12)


def test_aupro_is_computed_in_the_precision_of_the_maps() -> None:
    maps, masks = draw_maps(None)
    exact = 1 + 1e-12 * np.round(maps.astype(np.float64) * 4)
    assert aupro(exact, masks) == aupro(np.round(maps * 4), masks)


@pytest.mark.parametrize("max_fpr", [0, -0.1, 1.01, 2, np.nan])
def test_aupro_refuses_a_limit_that_is_no_rate(max_fpr: float) -> None:
    with pytest.raises(ValueError, match=r"max_fpr=.*: must be above 0 and at most 1"):
        aupro(np.zeros((1, 4, 4)), np.eye(4, dtype=bool)[None], max_fpr)


@pytest.mark.parametrize("levels", [None, 4])
def test_all_figures_equal_independent_ones(levels: int | None) -> None:
    maps, masks = draw_maps(levels)
    scores, has_anomaly = maps.max((1, 2)), masks.any((1, 2))
    values = metrics_of(maps, scores, has_anomaly, masks)
    assert list(values) == list(METRICS)
    flat, labels = maps.ravel(), masks.ravel()
    assert values["pixel_auroc"] == pytest.approx(roc_auc_score(labels, flat), abs=1e-6)
    assert values["pixel_ap"] == pytest.approx(average_precision_score(labels, flat), abs=1e-5)
    assert values["pixel_f1max"] == pytest.approx(literal_f1_max(flat, labels), abs=1e-6)
    assert values["aupro"] == pytest.approx(literal_aupro(maps, masks, 0.3), abs=1e-5)
    expected = roc_auc_score(has_anomaly, scores)
    assert values["image_auroc"] == values["image_auroc_max"] == pytest.approx(expected, abs=1e-12)
    assert values["image_ap"] == pytest.approx(average_precision_score(has_anomaly, scores))
    assert values["image_f1max"] == pytest.approx(literal_f1_max(scores, has_anomaly))
    expected = roc_auc_score(has_anomaly, maps.sum((1, 2)))
    assert values["image_auroc_sum"] == pytest.approx(expected, abs=1e-12)


def draw_smooth_maps(count: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Smooth maps as networks give, a little higher in the defects."""
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.gamma(2, 0.1, (count, size, size)), (0, 2, 2))
    masks = np.zeros(noise.shape, bool)
    for mask, y, x in zip(masks, *rng.integers(5, size - 15, (2, count)), strict=True):
        mask[y : y + 10, x : x + 7] = True
    return (noise + 0.02 * masks).astype(np.float32), masks


def test_counted_pixels_give_the_exact_figures_of_smooth_maps(
    caplog: pytest.LogCaptureFixture,
) -> None:
    maps, masks = draw_smooth_maps(60)
    values = metrics_of(maps, maps.max((1, 2)), np.arange(60) < 30, masks)
    labels, flat = masks.ravel(), maps.ravel()
    assert values["pixel_auroc"] == pytest.approx(roc_auc_score(labels, flat), abs=1e-6)
    assert values["pixel_ap"] == pytest.approx(average_precision_score(labels, flat), abs=1e-5)
    assert values["aupro"] == pytest.approx(aupro(maps, masks), abs=1e-5)
    assert not caplog.records
    found = median(counted(no_pixels(), maps, masks))
    assert found == pytest.approx(np.median(maps), rel=2e-5)
    assert median(no_pixels()) == 0


def test_maps_too_much_alike_to_be_counted_apart_give_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    maps = (1 + 2.0**-23 * np.arange(64))[None, None].astype(np.float32)
    masks = np.arange(64) >= 32
    values = metrics_of(maps, maps.max((1, 2)), np.array([True]), masks[None, None])
    assert values["pixel_auroc"] == 0.5  # all pixels tie
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "pixel AUROC may be off by 0.5: many pixels are nearly equal"
    assert aupro(maps, masks[None, None]) == 1


@pytest.mark.parametrize("sign", [1, -1])
def test_counting_part_by_part_gives_the_same_whatever_comes_first(sign: int) -> None:
    maps, masks = draw_smooth_maps(12, 32)
    maps *= sign * np.geomspace(1e-3, 1e3, 12, dtype=np.float32)[:, None, None]
    whole = counted(no_pixels(), maps, masks)
    assert whole.normal.size < 65536 * 26  # bounded by the range of values
    for order in (range(12), reversed(range(12))):
        counts = counted(no_pixels(), maps[:0], masks[:0])
        for i in order:
            counts = counted(counts, maps[i : i + 1], masks[i : i + 1])
        for part, expected in zip(counts, whole, strict=True):
            np.testing.assert_allclose(part, expected, rtol=1e-12)


def test_signs_zeros_and_values_near_zero_are_in_order() -> None:
    values = np.float32([-2, -1e-3, -1e-30, -0.0, 0.0, 1e-30, 1e-3, 2])
    for i, threshold in enumerate(np.unique(np.where(np.abs(values) < 1e-20, 0, values))):
        masks = (values >= threshold) if abs(threshold) > 0 else values >= -1e-20
        curve = counted(no_pixels(), values[None, None], masks[None, None]).unweighted()
        assert curve.is_defined == (i > 0)
        assert i == 0 or area_under_roc(curve) == 1


def test_without_masks_all_pixels_are_normal() -> None:
    maps, _ = draw_smooth_maps(2)
    counts = counted(no_pixels(), maps)
    assert (counts.normal.sum(), counts.anomalous.sum()) == (maps.size, 0)


def test_millions_of_pixels_stay_exact() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((16, 256, 256), bool)
    masks[:, 100:140, 50:120] = True
    maps = (rng.gamma(2, size=masks.shape) + masks).astype(np.float32)
    values = metrics_of(maps, maps.max((1, 2)), np.arange(16) < 8, masks)
    expected = roc_auc_score(masks.ravel(), maps.ravel())
    assert values["pixel_auroc"] == pytest.approx(expected, abs=1e-6)
    assert float(auroc(maps, masks)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("label", [False, True])
def test_a_single_class_has_no_metrics(label: bool) -> None:
    maps, masks = np.ones((3, 4, 4), np.float32), np.full((3, 4, 4), label)
    values = metrics_of(maps, np.arange(3.0), np.full(3, label), masks)
    assert values == dict.fromkeys(METRICS)
    assert np.isnan(aupro(maps, masks))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_never_give_a_figure(bad: float) -> None:
    assert np.isnan(auroc(np.array([0, 1, bad]), np.array([0, 1, 1])))
    assert np.isnan(auroc(jnp.array([0, 1, bad]), np.array([0, 1, 1])))
    maps = np.ones((1, 4, 4), np.float32)
    maps[0, 0, 0] = bad
    for figure in (aupro, lambda *given: counted(no_pixels(), *given)):
        with pytest.raises(ValueError, match="not finite"):
            figure(maps, np.eye(4, dtype=bool)[None])
