import math

import numpy as np
import pytest

from rd_jax.method.calibration import (
    Calibration,
    calibrate,
    exceeded_by,
    images_needed,
    num_exceeding,
    with_threshold,
)

RATES = [0.0, 0.01, 0.05, 0.07, 0.29, 0.5, 0.999]


def calibrated(scores: np.ndarray, rate: float, maps: np.ndarray | None = None) -> Calibration:
    """Of held-out images with these scores, which are the maxima of their maps."""
    pixels = scores if maps is None else maps
    return calibrate(
        scores, scores, pixels,
        is_holdout=True, false_positive_rate=rate, pixel_false_positive_rate=0.1, dtype="float32",
    )  # fmt: skip


def draw_maps(num_images: int) -> np.ndarray:
    rng = np.random.default_rng(num_images)
    return rng.gamma(2, 0.1, (num_images, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("num_images", [3, 9, 21, 98, 99, 100, 1000])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.29])
def test_new_normal_images_keep_the_stated_rate(num_images: int, rate: float) -> None:
    """By simulation: uniform scores, of which 1 - t lie above a threshold t."""
    rng = np.random.default_rng(0)
    draws = [calibrated(rng.uniform(size=num_images), rate) for _ in range(2000)]
    (stated,) = {calibration.kept_rate for calibration in draws}
    kept = 1 - np.array([calibration.image_threshold for calibration in draws])
    sampling_error = kept.std() / math.sqrt(len(kept))
    assert kept.mean() == pytest.approx(stated, abs=4 * sampling_error)
    if num_images >= images_needed(rate):
        assert stated <= rate
        assert stated > rate - 1 / (num_images + 1)  # and no lower than it must be
    else:
        assert stated == 1 / (num_images + 1) > rate


def test_the_number_of_images_above_is_exact_where_floats_are_not() -> None:
    # 0.29 * 100 is 28.999999999999996.
    assert num_exceeding(99, 0.29) == 28
    assert num_exceeding(99, 0.01) == 0
    assert num_exceeding(98, 0.01) == -1
    assert num_exceeding(199, 0.01) == 1
    assert [images_needed(rate) for rate in (0.01, 0.05, 0.3, 0.5)] == [99, 19, 3, 1]
    assert images_needed(0.0) == math.inf


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("rate", RATES)
def test_of_the_held_out_images_no_more_are_above_than_the_rate_allows(
    size: int, rate: float
) -> None:
    rng = np.random.default_rng(size)
    for scores in (rng.normal(size=size), rng.integers(0, 4, size).astype(float)):  # with ties
        calibration = calibrated(scores, rate)
        threshold = calibration.image_threshold
        assert threshold in scores
        num_above = np.sum(scores > threshold)
        assert num_above == 0 or (num_above + 1) / (size + 1) <= rate
        lower = scores[scores < threshold]
        if len(lower):  # the next lower one would let too many through
            assert (np.sum(scores > lower.max()) + 1) / (size + 1) > rate


@pytest.mark.parametrize("rate", RATES)
def test_pixels_have_a_rate_of_their_own(rate: float) -> None:
    maps = draw_maps(40)
    scores = maps.max((1, 2))
    calibration = calibrate(
        scores, scores, maps,
        is_holdout=True, false_positive_rate=0.05, pixel_false_positive_rate=rate, dtype="float32",
    )  # fmt: skip
    above = [np.mean(maps > t) for t in (calibration.pixel_threshold, calibration.image_threshold)]
    # An image that is anomalous by its maximum has anomalous pixels.
    assert above[0] == pytest.approx(max(rate, above[1]), abs=1 / maps.size)
    assert calibration.pixel_threshold <= calibration.image_threshold


def test_without_a_hold_out_there_is_a_scale_and_no_threshold() -> None:
    maps = draw_maps(10)
    calibration = calibrate(
        maps.max((1, 2)), maps.max((1, 2)), maps,
        is_holdout=False, false_positive_rate=0.1, pixel_false_positive_rate=0.1, dtype="float32",
    )  # fmt: skip
    assert calibration.source == "train"
    assert calibration.image_threshold is calibration.pixel_threshold is None
    assert calibration.kept_rate is None
    low, high = calibration.map_low, calibration.map_high
    assert np.mean(maps > low) == pytest.approx(0.01, abs=4e-4)
    assert high - np.median(maps) == pytest.approx(5 * (low - np.median(maps)), rel=1e-5)


def test_the_scale_begins_at_calm_pixels_and_ends_at_the_threshold() -> None:
    maps = draw_maps(40)
    scores = maps.max((1, 2))
    calibration = calibrated(scores, 0.1, maps)
    assert np.mean(maps > calibration.map_low) == pytest.approx(0.01, abs=1e-4)
    assert calibration.map_high == calibration.image_threshold
    # By the sum, images have another threshold; the scale keeps that of maxima.
    sums = maps.sum((1, 2))
    by_sum = calibrate(
        sums, scores, maps,
        is_holdout=True, false_positive_rate=0.1, pixel_false_positive_rate=0.1, dtype="float32",
    )  # fmt: skip
    assert by_sum.image_threshold in sums
    scale = (calibration.map_low, calibration.map_high)
    assert (by_sum.map_low, by_sum.map_high) == scale


def test_maps_without_any_spread_still_give_a_scale() -> None:
    calibration = calibrated(np.ones(2), 0.0, np.ones((2, 4, 4), np.float32))
    assert calibration.map_low < calibration.map_high == 1


def test_a_threshold_of_the_users_is_one_of_pixels_by_the_maximum_alone() -> None:
    maps = draw_maps(20)
    calibration = calibrated(maps.max((1, 2)), 0.01, maps)
    given = float(np.float32(calibration.pixel_threshold / 2))
    by_maximum = with_threshold(calibration, given, is_maximum=True)
    assert by_maximum.image_threshold == by_maximum.map_high == by_maximum.pixel_threshold == given
    assert by_maximum.map_low < given
    by_sum = with_threshold(calibration, given, is_maximum=False)
    assert by_sum == calibration._replace(image_threshold=given, kept_rate=None)


def test_exceeded_by_is_a_rank() -> None:
    assert [exceeded_by(np.array([3.0, 1.0, 2.0, 2.0]), k) for k in range(4)] == [3, 2, 2, 1]
