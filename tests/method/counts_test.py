"""Pixels are counted as they come; figures equal the exact ones to the error that is stated."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from rd_jax import aupro
from rd_jax.method.counts import (
    Counts,
    counted,
    largest_error,
    median,
    no_pixels,
    pixel_curve,
    region_curve,
)
from rd_jax.method.curves import area_under_precision_recall, area_under_roc, max_f1


def draw_maps(count: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Smooth maps as networks give, a little higher in the defects."""
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.gamma(2, 0.1, (count, size, size)), (0, 2, 2))
    masks = np.zeros(noise.shape, bool)
    for mask, y, x in zip(masks, *rng.integers(5, size - 15, (2, count)), strict=True):
        mask[y : y + 10, x : x + 7] = True
    return (noise + 0.02 * masks).astype(np.float32), masks


def test_figures_are_exact_to_the_stated_error_which_is_small() -> None:
    maps, masks = draw_maps(20)
    counts = counted(no_pixels(), maps, masks)
    values, labels = maps.ravel(), masks.ravel()
    bound = largest_error(counts)
    assert 0 < bound < 3e-5
    error = abs(area_under_roc(pixel_curve(counts)) - roc_auc_score(labels, values))
    assert error <= bound + 1e-7  # of float32
    assert error < 1e-6
    ap = average_precision_score(labels, values)
    assert area_under_precision_recall(pixel_curve(counts)) == pytest.approx(ap, abs=1e-5)
    exact = aupro(maps, masks)
    assert area_under_roc(region_curve(counts), 0.3) == pytest.approx(exact, abs=1e-5)
    assert median(counts) == pytest.approx(np.median(maps), rel=2e-5)


def test_the_stated_error_holds_where_it_is_reached() -> None:
    step = np.float32(2**-23)
    maps, masks = 1 + step * np.arange(64, dtype=np.float32)[None, None], np.arange(64) >= 32
    counts = counted(no_pixels(), maps, masks[None, None])
    assert largest_error(counts) == 0.5  # all pixels are one level
    assert area_under_roc(pixel_curve(counts)) == 0.5  # and not 1


@pytest.mark.parametrize("sign", [1, -1])
def test_counting_part_by_part_gives_the_same_whatever_comes_first(sign: int) -> None:
    maps, masks = draw_maps(12, 32)
    maps *= sign * np.geomspace(1e-3, 1e3, 12, dtype=np.float32)[:, None, None]
    whole = counted(no_pixels(), maps, masks)
    for order in (range(12), reversed(range(12))):
        counts = no_pixels()
        for i in order:
            counts = counted(counts, maps[i : i + 1], masks[i : i + 1])
        for of in (pixel_curve, region_curve):
            for part, expected in zip(of(counts), of(whole), strict=True):
                np.testing.assert_allclose(part, expected, rtol=1e-12)


def test_signs_zeros_and_what_is_nearly_zero_are_in_order() -> None:
    values = np.float32([-2, -1e-3, -1e-30, -0.0, 0.0, 1e-30, 1e-3, 2])
    for i, threshold in enumerate(np.unique(np.where(np.abs(values) < 1e-20, 0, values))):
        masks = (values >= threshold) if abs(threshold) > 0 else values >= -1e-20
        curve = pixel_curve(counted(no_pixels(), values[None, None], masks[None, None]))
        assert np.isnan(area_under_roc(curve)) if i == 0 else area_under_roc(curve) == 1


def test_more_pixels_than_31_bits_count() -> None:
    normal, anomalous = np.array([2**33, 2**32, 0]), np.array([0, 2**31, 2**32])
    counts = Counts(0, normal, anomalous, anomalous / 2**31)
    curve = pixel_curve(counts)
    total = 2**33 + 2**32
    expected = (2 / 3) * 1 + (1 / 3) * (1 - 2**32 / total / 2)
    assert area_under_roc(curve) == pytest.approx(expected, abs=1e-6)
    both = 2**31 + 2**32
    precision = (2 / 3) * 1 + (1 / 3) * both / (both + 2**32)
    assert area_under_precision_recall(curve) == pytest.approx(precision, abs=1e-6)
    assert max_f1(curve) == pytest.approx(2 * 2**32 / (2**32 + both), abs=1e-6)
