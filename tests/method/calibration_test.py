import numpy as np
import pytest

from rd_jax.method.calibration import calibrate, threshold_at


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("rate", [0.0, 0.01, 0.07, 0.29, 0.5, 0.999])
def test_a_threshold_is_the_smallest_value_that_at_most_the_rate_exceeds(
    size: int, rate: float
) -> None:
    rng = np.random.default_rng(size)
    for values in (rng.normal(size=size), rng.integers(0, 4, size)):  # the second with ties
        allowed = [v for v in values if np.mean(values > v) <= rate]
        assert threshold_at(values.astype(np.float32), rate) == np.float32(min(allowed))


def draw_maps(num_images: int) -> np.ndarray:
    rng = np.random.default_rng(num_images)
    return rng.gamma(2, 0.1, (num_images, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3])
def test_thresholds_keep_the_false_positive_rate_on_held_out_images(rate: float) -> None:
    maps = draw_maps(40)
    scores = maps.max((1, 2))
    calibration = calibrate(maps, scores, rate, is_holdout=True)
    assert (calibration.source, calibration.num_images) == ("holdout", 40)
    assert calibration.false_positive_rate == rate
    assert np.sum(scores > calibration.image_threshold) == round(rate * 40)
    pixels_above = np.sum(maps > calibration.pixel_threshold)
    assert rate * maps.size - 1 < pixels_above <= rate * maps.size


def test_images_that_were_trained_on_set_no_threshold_but_a_scale() -> None:
    maps = draw_maps(10)
    trained_on = calibrate(maps, maps.max((1, 2)), 0.1, is_holdout=False)
    held_out = calibrate(maps, maps.max((1, 2)), 0.1, is_holdout=True)
    assert trained_on.source == "train"
    assert trained_on.image_threshold is None
    assert trained_on.pixel_threshold is None
    assert trained_on[-2:] == held_out[-2:]


def test_the_scale_leaves_normal_pixels_calm_whatever_a_few_outliers_are() -> None:
    maps = draw_maps(20)
    low, high = calibrate(maps, maps.max((1, 2)), 0.0, is_holdout=True)[-2:]
    assert np.mean(maps > low) == pytest.approx(0.01, abs=2e-4)
    assert high - np.median(maps) == pytest.approx(5 * (low - np.median(maps)), rel=1e-5)
    maps[0, 0, 0] = 1000
    assert calibrate(maps, maps.max((1, 2)), 0.0, is_holdout=True).map_high < 1.1 * high


def test_maps_without_any_spread_still_give_a_scale() -> None:
    calibration = calibrate(np.ones((2, 4, 4), np.float32), np.ones(2), 0.0, is_holdout=True)
    assert calibration.map_low < calibration.map_high
