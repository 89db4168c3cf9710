import jax.numpy as jnp
import numpy as np
import pytest

from rd_jax.method.counts import counted, no_pixels, pixel_curve
from rd_jax.method.score import fused_map, make_maps
from rd_jax.method.size import cropped, inside, region_of


@pytest.mark.parametrize("size", [(64, 64), (96, 32), (32, 160)])
@pytest.mark.parametrize("picture", [(64, 64), (1500, 2000), (630, 250), (3, 1000), (1, 1)])
def test_a_fitted_picture_is_as_large_as_it_can_be_and_in_the_middle(
    picture: tuple[int, int], size: tuple[int, int]
) -> None:
    assert region_of(picture, size, "stretch") == (0, 0, *size)
    top, left, height, width = region_of(picture, size, "fit")
    assert height == size[0] or width == size[1]
    for start, length, there in ((top, height, size[0]), (left, width, size[1])):
        assert 0 <= there - length - 2 * start <= 1
    if min(height, width) > 1:
        (h, w), scale = picture, max(height / picture[0], width / picture[1])
        assert abs(h * scale - height) <= 1
        assert abs(w * scale - width) <= 1


def test_outside_of_their_pictures_maps_are_nothing_and_pixels_do_not_count() -> None:
    rng = np.random.default_rng(0)
    distances = [jnp.asarray(rng.gamma(2, 0.1, (3, s, 2 * s)), jnp.float32) for s in (16, 8)]
    regions = np.array([[0, 0, 64, 128], [8, 0, 48, 128], [0, 50, 64, 20]], np.int32)
    for reduction, combined in (("max", np.max), ("sum", np.sum)):
        maps, scores = make_maps((64, 128), reduction=reduction)(distances, regions)
        whole = np.asarray(fused_map(distances, (64, 128)))
        for i, region in enumerate(regions):
            np.testing.assert_array_equal(cropped(maps[i], region), cropped(whole[i], region))
            assert scores[i] == pytest.approx(combined(cropped(whole[i], region)), rel=1e-5)
        assert np.count_nonzero(maps) == inside(regions, (64, 128)).sum()
    masks = rng.random(whole.shape) < 0.2
    counts = counted(no_pixels(), whole, masks, regions)
    pixels, labels = (
        np.concatenate([cropped(x, r).ravel() for x, r in zip(of, regions, strict=True)])
        for of in (whole, masks)
    )
    alone = counted(no_pixels(), pixels[None, None], labels[None, None])
    for a, b in zip(pixel_curve(counts), pixel_curve(alone), strict=True):
        np.testing.assert_array_equal(a, b)
