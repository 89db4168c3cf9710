import numpy as np
import pytest

from rd_jax.report.heatmap import overlay, resized_map, strength
from tests.reference_weights import draw_images


def test_strength_is_linear_between_the_ends_of_the_scale_and_full_above_alone() -> None:
    maps = np.array([[-1.0, 1.0, 2.0], [3.0, np.nextafter(np.float32(3), 4), 9.0]], np.float32)
    levels = strength(maps, 1, 3)
    np.testing.assert_array_equal(levels, [[0, 0, 127], [254, 255, 255]])
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


def test_a_calm_map_shows_the_image_itself() -> None:
    image = draw_images(1, 40)[0][:30]
    np.testing.assert_array_equal(overlay(image, np.full((8, 8), 0.5), 0.5, 1.0), image)
    np.testing.assert_array_equal(overlay(image, np.full((8, 8), -9.0), 0.5, 1.0), image)


def test_the_colour_goes_from_blue_to_red_and_covers_more_and_more() -> None:
    image = np.full((16, 256, 3), 128, np.uint8)
    ramp = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (16, 1))
    red, _, blue = overlay(image, ramp, 0.0, 1.0)[8].astype(int).T
    assert blue[64] > red[64]
    assert red[250] > blue[250] + 100
    change = np.abs(overlay(image, ramp, 0.0, 1.0)[8].astype(int) - 128).sum(-1)
    assert change[0] == 0
    assert change[240] > change[128] > change[32]


def test_an_image_stays_visible_below_the_strongest_colour() -> None:
    dark, bright = (np.full((4, 4, 3), value, np.uint8) for value in (0, 255))
    full = np.full((2, 2), 1.1)
    difference = overlay(bright, full, 0, 1).astype(int) - overlay(dark, full, 0, 1)
    np.testing.assert_allclose(difference, 0.3 * 255, atol=1.5)


@pytest.mark.parametrize(("height", "width"), [(20, 60), (61, 23), (8, 8), (1, 1)])
def test_an_overlay_marks_the_same_place_at_any_size_and_aspect_ratio(
    height: int, width: int
) -> None:
    image = np.full((height, width, 3), 200, np.uint8)
    anomaly_map = np.zeros((8, 8))
    anomaly_map[1:3, 5:7] = 1
    result = overlay(image, anomaly_map, 0.0, 1.0)
    assert result.shape == image.shape
    assert result.dtype == np.uint8
    if min(height, width) >= 8:
        row, column = np.argwhere(np.any(result != image, axis=-1)).mean(0)
        assert row == pytest.approx(2 / 8 * height - 0.5, abs=0.5)
        assert column == pytest.approx(6 / 8 * width - 0.5, abs=0.5)
