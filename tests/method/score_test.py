import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from rd_jax import (
    Model,
    anomaly_map,
    create_train_state,
    flattened_cosine_loss,
    image_score,
    make_scorer,
    per_position_cosine_loss,
)
from rd_jax.method.models import cpu
from rd_jax.method.score import Scoring, blur_matrix, upsampling_matrix
from tests.method.networks import OPTIMIZER, teacher_of


@pytest.mark.parametrize("size", [8, 32, 256])
@pytest.mark.parametrize("sigma", [0.5, 4.0, 6.0])
def test_blur_equals_scipy(size: int, sigma: float) -> None:
    x = np.random.default_rng(0).normal(size=(size, size))
    blur = blur_matrix(size, sigma)
    np.testing.assert_allclose(blur @ x @ blur.T, ndimage.gaussian_filter(x, sigma), atol=1e-12)


def test_upsampling_keeps_corners_and_linear_functions() -> None:
    matrix = upsampling_matrix(17, 5)
    np.testing.assert_allclose(matrix @ np.arange(5), np.linspace(0, 4, 17), atol=1e-12)
    np.testing.assert_array_equal(upsampling_matrix(4, 1), np.ones((4, 1)))


@pytest.mark.parametrize("length", [1, 2, 16, 64])
def test_upsampling_equals_pytorch_align_corners(length: int) -> None:
    torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
    x = np.random.default_rng(0).normal(size=(length, length))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x)[None, None], 256, mode="bilinear", align_corners=True
    )[0, 0].numpy()
    matrix = upsampling_matrix(256, length)
    np.testing.assert_allclose(matrix @ x @ matrix.T, expected, atol=1e-9)


@pytest.mark.parametrize("fusion", ["sum", "product"])
def test_map_is_the_blurred_sum_or_product_over_scales(fusion: str) -> None:
    rng = np.random.default_rng(0)
    shapes = [(2, 16, 24, 4), (2, 8, 12, 8)]
    teacher, student = (
        tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes) for _ in range(2)
    )
    upsampled = []
    for t, s in zip(teacher, student, strict=True):
        t64, s64 = np.asarray(t, np.float64), np.asarray(s, np.float64)
        norms = np.linalg.norm(t64, axis=-1) * np.linalg.norm(s64, axis=-1)
        distance = 1 - (t64 * s64).sum(-1) / norms
        rows, columns = upsampling_matrix(64, t.shape[1]), upsampling_matrix(96, t.shape[2])
        upsampled.append(np.stack([rows @ d @ columns.T for d in distance]))
    fused = {"sum": np.sum, "product": np.prod}[fusion](upsampled, axis=0)
    expected = np.stack([ndimage.gaussian_filter(x, 4) for x in fused])
    maps = anomaly_map(teacher, student, (64, 96), fusion=fusion)
    np.testing.assert_allclose(maps, expected, atol=1e-5)


def test_image_score_is_the_maximum_or_the_sum() -> None:
    maps = jnp.arange(2 * 3 * 3, dtype=jnp.float32).reshape(2, 3, 3)
    np.testing.assert_array_equal(image_score(maps), [8, 17])
    np.testing.assert_array_equal(image_score(maps, "sum"), [36, 117])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"fusion": "mean"}, r"fusion='mean': must be one of \('sum', 'product'\)"),
        ({"reduction": "mean"}, r"reduction='mean': must be one of \('max', 'sum'\)"),
        *(({"sigma": s}, "sigma=.*: must be a number of pixels") for s in (-1, math.nan, math.inf)),
    ],
)
def test_a_way_to_score_that_does_not_exist_is_refused(bad: dict, message: str) -> None:
    features, maps = (jnp.ones((1, 2, 2, 3)),), jnp.ones((1, 2, 2))
    functions = [Scoring, partial(make_scorer, Model("micro"))]
    functions += [partial(image_score, maps)] if "reduction" in bad else []
    functions += [] if "reduction" in bad else [partial(anomaly_map, features, features, 8)]
    for function in functions:
        with pytest.raises(ValueError, match=message):
            function(**bad)


UNEQUAL = {
    "positions": ([(2, 4, 4, 3)], [(2, 4, 1, 3)]),
    "channels": ([(2, 4, 4, 3)], [(2, 4, 4, 1)]),
    "images": ([(2, 4, 4, 3)], [(1, 4, 4, 3)]),
    "scales": ([(2, 4, 4, 3), (2, 2, 2, 3)], [(2, 4, 4, 3)]),
    "none": ([], []),
}


@pytest.mark.parametrize(("teacher", "student"), UNEQUAL.values(), ids=UNEQUAL.keys())
def test_features_of_unequal_shapes_are_neither_compared_nor_learnt(
    teacher: list, student: list
) -> None:
    features = tuple(tuple(map(jnp.ones, shapes)) for shapes in (teacher, student))
    for function in (per_position_cosine_loss, flattened_cosine_loss, partial(anomaly_map, size=8)):
        with pytest.raises(ValueError, match=r"teacher's .* the shapes \[.*student's \["):
            function(*features)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_float32_is_not_rounded_on_any_device_and_bfloat16_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, dtype: type
) -> None:
    monkeypatch.setattr(cpu, "_is_on_cpu", lambda: False)  # as on other devices
    model, teacher = Model("micro", dtype=dtype), teacher_of("micro")
    state = create_train_state(model, OPTIMIZER, jax.random.key(0))
    images = np.zeros((1, 32, 32, 3), np.uint8)
    lowered = make_scorer(model).lower(teacher, state.student_variables, images)
    products = re.findall(r"stablehlo\.(?:convolution|dot_general).*", lowered.as_text())
    of_networks = [p for p in products if ("bf16" in p) == (dtype == jnp.bfloat16)]
    assert len(of_networks) > 10
    # The maps are float32 in any case.
    assert all(p.count("HIGHEST") == (0 if "bf16" in p else 2) for p in products)
