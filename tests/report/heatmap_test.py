import numpy as np
import pytest
from PIL import Image

from rd_jax.report.heatmap import contour, overlay, resized_map, strength
from tests.reference_weights import draw_images


def test_strength_is_linear_between_the_ends_of_the_scale() -> None:
    levels = strength(np.array([[-1.0, 1.0, 2.0], [2.99, 3.0, 9.0]], np.float32), 1, 3)
    np.testing.assert_array_equal(levels, [[0, 0, 127], [253, 255, 255]])
    assert levels.dtype == np.uint8


def test_a_resized_map_has_the_given_size_and_keeps_linear_functions() -> None:
    ramp = np.add.outer(np.arange(8.0), 10 * np.arange(8.0))
    larger = resized_map(ramp, (16, 24))
    assert larger.shape == (16, 24)
    assert larger.dtype == np.float32
    # The centre of pixel i lies at (i + 0.5) / scale - 0.5 of the smaller grid.
    rows, columns = (np.arange(16) + 0.5) / 2 - 0.5, (np.arange(24) + 0.5) / 3 - 0.5
    expected = np.add.outer(rows, 10 * columns)
    np.testing.assert_allclose(larger[2:-2, 3:-3], expected[2:-2, 3:-3], atol=1e-4)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((9, 13), (40, 170)),
        ((40, 171), (9, 13)),
        ((30, 7), (11, 64)),
        ((8, 8), (8, 8)),
        ((1, 5), (3, 1)),
    ],
)
def test_a_resized_map_is_pillows_to_rounding_and_keeps_its_maximum(
    size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    anomaly_map = np.random.default_rng(0).gamma(2, 0.2, size).astype(np.float32)
    expected = Image.fromarray(anomaly_map).resize(wanted[::-1], Image.Resampling.BILINEAR)
    found = resized_map(anomaly_map, wanted)
    differs = abs(found - np.asarray(expected)) > 1e-6
    assert found.max() == anomaly_map.max()
    assert not np.argwhere(differs & (found < found.max())).size


def test_a_constant_map_stays_below_its_value() -> None:
    for value in np.random.default_rng(0).random(20, np.float32):
        assert resized_map(np.full((8, 12), value), (37, 101)).max() == value


def test_a_calm_map_shows_the_image_itself() -> None:
    image = draw_images(1, 40)[0][:30]
    for value in (0.5, -9.0):
        result = overlay(image, np.full((8, 8), value), 0.5, 1.0, is_anomalous=True)
        np.testing.assert_array_equal(result, image)


def test_the_colour_goes_from_blue_to_red_and_covers_more_and_more() -> None:
    image = np.full((16, 256, 3), 128, np.uint8)
    ramp = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (16, 1))
    row = overlay(image, ramp, 0.0, 1.0, is_anomalous=False)[8].astype(int)
    red, _, blue = row.T
    assert blue[64] > red[64]
    assert red[250] > blue[250] + 50
    change = np.abs(row - 128).sum(-1)
    assert change[0] == 0
    assert change[240] > change[128] > change[32]


def test_an_image_stays_visible_below_the_strongest_colour() -> None:
    dark, bright = (np.full((4, 4, 3), value, np.uint8) for value in (0, 255))
    full = np.full((2, 2), 1.1)
    difference = overlay(bright, full, 0, 1, False).astype(int) - overlay(dark, full, 0, 1, False)
    assert (difference > 0.55 * 255).all()


@pytest.mark.parametrize(("size", "width"), [((30, 40), 2), ((4, 1500), 3)])
def test_an_anomalous_image_has_a_line_just_inside_what_is_above(
    size: tuple[int, int], width: int
) -> None:
    mask = np.zeros(size, bool)
    mask[size[0] // 3 :, 4:30] = True
    mask[0, 2] = True
    places = np.argwhere(mask)
    outside = np.argwhere(np.pad(~mask, 1, constant_values=True)) - 1
    near = np.abs(places[:, None] - outside).max(-1).min(1) <= width  # by all distances
    expected = np.zeros(size, bool)
    expected[tuple(places[near].T)] = True
    np.testing.assert_array_equal(contour(mask), expected)

    image = np.full((*size, 3), 128, np.uint8)
    plain, marked = (overlay(image, mask * 0.7, 0.5, 1.0, verdict) for verdict in (None, True))
    assert (plain[expected] != marked[expected]).any(-1).all()
    np.testing.assert_array_equal(plain[~expected], marked[~expected])
    np.testing.assert_array_equal(marked[~mask], 128)


@pytest.mark.parametrize(("height", "width"), [(20, 60), (61, 23), (8, 8), (1, 1)])
def test_an_overlay_marks_the_same_place_at_any_size_and_aspect_ratio(
    height: int, width: int
) -> None:
    image = np.full((height, width, 3), 200, np.uint8)
    anomaly_map = np.zeros((8, 8))
    anomaly_map[1:3, 5:7] = 1
    result = overlay(image, anomaly_map, 0.0, 1.0, is_anomalous=True)
    assert result.shape == image.shape
    assert result.dtype == np.uint8
    if min(height, width) >= 8:
        row, column = np.argwhere(np.any(result != image, axis=-1)).mean(0)
        assert row == pytest.approx(2 / 8 * height - 0.5, abs=0.5)
        assert column == pytest.approx(6 / 8 * width - 0.5, abs=0.5)
