import math

import numpy as np
import pytest

from rd_jax.method.metrics import counted, no_pixels
from rd_jax.method.thresholds import (
    MARGIN,
    NormalScores,
    Thresholds,
    images_needed,
    metrics_at,
    num_exceeding,
    pixel_table,
    pooled,
    possible_rate,
    thresholds_of,
    with_threshold,
)

RATES = [0.0, 0.01, 0.05, 0.07, 0.29, 0.5, 0.999]
ALIKE = 1 / 65536  # the relative difference of values that tie


def draw_maps(num_images: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([num_images, seed])
    return rng.gamma(2, 0.1, (num_images, 16, 16)).astype(np.float32)


def normal_of(maps: np.ndarray, is_held_out: bool = True) -> NormalScores:
    """Of maps, whose maxima are the scores."""
    maxima = maps.max((1, 2))
    return NormalScores(is_held_out, maxima, maxima, pixel_table(counted(no_pixels(), maps)))


def of_scores(scores: np.ndarray, rate: float) -> Thresholds:
    """Of held-out images with these scores."""
    return thresholds_of(NormalScores(True, scores, scores, np.array([[0.0, 1.0]])), rate, 0.0)


def is_set_by(threshold: float | None, score: float) -> bool:
    return threshold == float(np.float32(score + MARGIN * abs(score)))


@pytest.mark.parametrize("num_images", [3, 9, 21, 98, 99, 100, 1000])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.29])
def test_new_normal_images_keep_the_stated_rate(num_images: int, rate: float) -> None:
    """By simulation: uniform scores, of which 1 - t lie above a threshold t."""
    rng = np.random.default_rng(0)
    draws = [of_scores(rng.uniform(size=num_images), rate) for _ in range(2000)]
    (stated,) = {thresholds.kept_rate for thresholds in draws}
    assert stated is not None
    kept = 1 - np.array([thresholds.image_threshold for thresholds in draws])
    sampling_error = kept.std() / math.sqrt(len(kept))
    assert kept.mean() == pytest.approx(stated, abs=4 * sampling_error + MARGIN)
    (possible,) = {thresholds.possible_rate for thresholds in draws}
    assert possible is not None
    assert np.mean(kept > possible) == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 2000))
    if num_images >= images_needed(rate):
        assert stated <= rate
        assert stated > rate - 1 / (num_images + 1)  # and no lower than it must be
    else:
        assert stated == 1 / (num_images + 1) > rate


def test_the_largest_rate_that_is_likely_has_a_closed_form() -> None:
    """With the highest of N scores as threshold it is 1 - 0.05 ** (1 / N)."""
    for num_images in (3, 6, 20, 99, 1000):
        expected = 1 - 0.05 ** (1 / num_images)
        assert possible_rate(num_images, 0) == pytest.approx(expected, rel=1e-9)
    assert [round(100 * possible_rate(n, 0)) for n in (6, 20, 99)] == [39, 14, 3]


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
def test_no_more_held_out_images_are_above_than_the_rate_allows(size: int, rate: float) -> None:
    rng = np.random.default_rng(size)
    for scores in (rng.normal(size=size), rng.integers(-2, 4, size).astype(float)):  # with ties
        threshold = of_scores(scores, rate).image_threshold
        (set_by,) = {x for x in scores.tolist() if is_set_by(threshold, x)}
        num_above = np.sum(scores > threshold)
        assert num_above == 0 or (num_above + 1) / (size + 1) <= rate
        lower = scores[scores < set_by]
        if len(lower):  # the next lower one would let too many through
            assert (np.sum(scores > lower.max()) + 1) / (size + 1) > rate


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_image_that_sets_the_threshold_is_normal_with_other_last_digits(
    rate: float, sign: int
) -> None:
    scores = sign * draw_maps(20).max((1, 2))
    threshold = of_scores(scores, rate).image_threshold
    (set_by,) = [x for x in scores if is_set_by(threshold, x)]
    assert float(np.float32(set_by + 5e-5 * abs(set_by))) < threshold
    assert threshold == float(np.float32(threshold))  # as scores are: equality means the same


@pytest.mark.parametrize("rate", RATES)
def test_pixels_have_a_rate_of_their_own(rate: float) -> None:
    maps = draw_maps(40)
    thresholds = thresholds_of(normal_of(maps), 0.05, rate)
    pixel, image = thresholds.pixel_threshold, thresholds.image_threshold
    assert pixel is not None
    assert image is not None
    # An image that is anomalous by its maximum has anomalous pixels.
    assert pixel <= image
    if rate == 0.999:  # three digits: the next lower rate of two
        rate = 0.99
    assert np.mean(maps > pixel) == pytest.approx(max(rate, np.mean(maps > image)), abs=3e-4)


def test_pixel_thresholds_are_exact_for_two_digits_and_never_too_low() -> None:
    values = np.random.default_rng(0).normal(0, 0.1, 2**21).astype(np.float32)
    ascending, normal = np.sort(values), normal_of(values.reshape(1, 1, -1))
    assert len(normal.pixels) < 800
    assert (np.diff(normal.pixels, axis=0) * [-1, 1] > 0).all()
    two_digits = [d * 10.0**-e for d in (10, 11, 37, 99) for e in range(2, 9)]
    for rate in (0.0, *(float(f"{r:.1e}") for r in two_digits)):
        exact = ascending[-1 - round(rate * 1e12) * values.size // 10**12]
        table = normal.pixels
        found = table[table[:, 0] <= rate, 1].min()
        assert 0 <= found - exact <= ALIKE * abs(exact), rate
    for rate in np.random.default_rng(1).uniform(0, 1, 50).tolist():
        pixel = thresholds_of(normal._replace(is_held_out=True), 0.0, rate).pixel_threshold
        assert np.mean(values > pixel) <= rate


@pytest.mark.parametrize("sign", [1, -1])
def test_no_pixel_is_above_the_value_that_it_is_counted_at(sign: int) -> None:
    values = np.float32([1, 1.9, 2, 0.3, 1e-5, 2.0**-40, 3e38, 0]) * sign
    for value in values:
        (highest,) = counted(no_pixels(), value[None, None, None]).scores
        assert value <= highest <= max(value + ALIKE * abs(value), 2.0**-140)
        above = np.nextafter(highest, np.float32(np.inf))
        assert counted(no_pixels(), above[None, None, None]).scores > highest


def test_without_held_out_images_there_is_a_scale_and_no_threshold() -> None:
    maps = draw_maps(10)
    thresholds = thresholds_of(normal_of(maps, is_held_out=False), 0.1, 0.1)
    assert thresholds.source == "train"
    assert thresholds.image_threshold is thresholds.pixel_threshold is None
    assert thresholds.kept_rate is None
    low, high = thresholds.map_low, thresholds.map_high
    assert np.mean(maps > low) == pytest.approx(0.01, abs=4e-4)
    assert high - np.median(maps) == pytest.approx(5 * (low - np.median(maps)), rel=1e-3)


def test_the_scale_begins_at_the_threshold_of_pixels_and_ends_at_twice_that() -> None:
    maps = draw_maps(40)
    normal = normal_of(maps)
    thresholds = thresholds_of(normal, 0.1, 0.01)
    assert thresholds.map_low == thresholds.pixel_threshold
    assert np.mean(maps > thresholds.map_low) == pytest.approx(0.01, abs=1e-4)
    assert thresholds.map_high == 2 * thresholds.map_low
    # By the sum, images have another threshold; the scale stays.
    sums = maps.sum((1, 2))
    by_sum = thresholds_of(normal._replace(scores=sums), 0.1, 0.01)
    assert any(is_set_by(by_sum.image_threshold, x) for x in sums)
    scale = (thresholds.map_low, thresholds.map_high)
    assert (by_sum.map_low, by_sum.map_high) == scale


def test_maps_without_any_spread_still_give_a_scale() -> None:
    for value in (0.0, 1.0):
        for is_held_out in (True, False):
            maps = np.full((2, 4, 4), value, np.float32)
            thresholds = thresholds_of(normal_of(maps, is_held_out), 0.0, 0.1)
            assert value <= thresholds.map_low < thresholds.map_high


def test_a_threshold_of_the_users_is_one_of_pixels_by_the_maximum_alone() -> None:
    thresholds = thresholds_of(normal_of(draw_maps(20)), 0.01, 0.1)
    assert thresholds.pixel_threshold is not None
    given = float(np.float32(thresholds.pixel_threshold / 2))
    by_maximum = with_threshold(thresholds, given, is_maximum=True)
    assert by_maximum.image_threshold == by_maximum.map_low == by_maximum.pixel_threshold == given
    assert by_maximum.map_high == 2 * given
    high = with_threshold(thresholds, 2 * thresholds.pixel_threshold, is_maximum=True)
    assert high.pixel_threshold == thresholds.pixel_threshold
    by_sum = with_threshold(thresholds, given, is_maximum=False)
    assert by_sum == thresholds._replace(image_threshold=given, kept_rate=None, possible_rate=None)


def test_pooled_categories_have_the_thresholds_of_all_their_images() -> None:
    maps = [draw_maps(12), 2 * draw_maps(30, seed=1), draw_maps(7, seed=2) - 0.3]
    together = thresholds_of(normal_of(np.concatenate(maps)), 0.05, 0.1)
    found = thresholds_of(pooled([normal_of(x) for x in maps]), 0.05, 0.1)
    for name in ("num_images", "image_threshold", "kept_rate"):
        assert getattr(found, name) == getattr(together, name)
    for name in ("pixel_threshold", "map_low", "map_high"):  # no lower, and not much higher
        exact = getattr(together, name)
        assert exact <= getattr(found, name) <= 1.05 * exact
    assert pooled([normal_of(maps[0]), normal_of(maps[1], is_held_out=False)]).is_held_out is False


def test_figures_at_a_threshold_are_undefined_where_nothing_is_counted() -> None:
    scores, labels = np.float32([1, 2, 3, 4]), np.array([False, True, False, True])
    found = metrics_at(2.0, scores, labels)  # calls 3 and 4 anomalous
    assert found == {"image_precision": 0.5, "image_recall": 0.5, "image_f1": 0.5}
    assert metrics_at(4.0, scores, labels)["image_precision"] is None
    assert set(metrics_at(2.0, scores, ~labels & labels).values()) == {None}
    of_anomalous = metrics_at(1.0, scores, ~labels | labels)
    assert of_anomalous == {"image_precision": None, "image_recall": 0.75, "image_f1": None}
    assert set(metrics_at(None, scores, labels).values()) == {None}
