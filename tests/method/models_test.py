from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rd_jax import Model
from rd_jax.method.models import BACKBONES, Bottleneck, Reconstruction, Teacher
from rd_jax.method.models.batch_norm import BatchNorm, _batch_normalized
from rd_jax.method.models.init import example_shapes, init_variables, variable_shapes

REAL_BACKBONES = [name for name in BACKBONES if "resnet" in name]


@pytest.mark.parametrize(
    ("backbone", "channels"), [(name, 256 if "50" in name else 64) for name in REAL_BACKBONES]
)
def test_student_features_have_the_teachers_shapes(backbone: str, channels: int) -> None:
    image, features = example_shapes(backbone)
    image = jax.ShapeDtypeStruct((2, 64, 96, 3), image.dtype)
    key = jax.random.key(0)
    features, _ = jax.eval_shape(Teacher(backbone).init_with_output, key, image)
    student, _ = jax.eval_shape(Reconstruction(backbone).init_with_output, key, features)
    assert [f.shape for f in features] == [
        (2, 16, 24, channels),
        (2, 8, 12, 2 * channels),
        (2, 4, 6, 4 * channels),
    ]
    assert student == features


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"backbone": "resnet19"}, r"backbone='resnet19': must be one of \('resnet10', 'resnet18'"),
        ({"bottleneck": "mff"}, r"bottleneck='mff': must be one of \('pre', 'oce', 'mff_oce'\)"),
        ({"direction": "Forward"}, r"direction='Forward': must be one of \('reverse', 'forward'\)"),
        *(
            ({"scales": scales}, r"scales=.*: must be a non-empty ascending choice of \(1, 2, 3\)")
            for scales in ((), (0,), (4,), (2, 1), (1, 1), (1.5,))
        ),
    ],
)
def test_a_model_of_what_does_not_exist_is_refused(bad: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Model(**{"backbone": "resnet18"} | bad)


def test_an_unknown_kind_of_bottleneck_is_refused() -> None:
    _, features = example_shapes("micro")
    kind: Any = "mff"
    with pytest.raises(ValueError, match="kind='mff': must be one of"):
        jax.eval_shape(Bottleneck("micro", kind).init, jax.random.key(0), features)


@pytest.mark.parametrize("size", [(8, 12), (7, 8)])
def test_max_pooling_of_zeros_around_is_that_of_padding_after_relu(size: tuple[int, int]) -> None:
    """In value and, where ReLU lets gradients through, in gradient."""
    x = np.random.default_rng(0).normal(0, 1, (2, *size, 3)).astype(np.float32)
    x[0] -= 2  # whole windows at the border without anything positive

    def padded(x: jax.Array) -> jax.Array:
        x = jnp.pad(nn.relu(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
        return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="VALID")

    def reference(x: jax.Array) -> jax.Array:
        return nn.max_pool(nn.relu(x), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

    np.testing.assert_array_equal(padded(x), reference(x))
    own, expected = (jax.vjp(pool, x)[1](pool(x))[0] for pool in (padded, reference))
    np.testing.assert_array_equal(own, expected)


def test_oce_alone_does_not_see_the_shallow_features() -> None:
    _, features = example_shapes("tiny")
    module = Bottleneck("tiny", "oce")
    rng = np.random.default_rng(0)
    drawn = tuple(rng.normal(size=f.shape).astype(np.float32) for f in features)
    variables = init_variables(variable_shapes(module, features), jax.random.key(0))
    assert set(variables["params"]) == {"bn_layer_0"}
    deepest_alone = (0 * drawn[0], 0 * drawn[1], drawn[2])
    np.testing.assert_array_equal(
        module.apply(variables, drawn), module.apply(variables, deepest_alone)
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parameters_and_statistics_stay_float32(dtype: jnp.dtype) -> None:
    _, features = example_shapes("resnet18")
    module = Reconstruction("resnet18", dtype=dtype)

    def init_and_apply(key, features):
        variables = module.init(key, features)
        return variables, module.apply(variables, features, True, mutable=["batch_stats"])

    variables, (outputs, updated) = jax.eval_shape(init_and_apply, jax.random.key(0), features)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, updated))} == {jnp.dtype("float32")}
    assert {output.dtype for output in outputs} == {jnp.dtype(dtype)}


def test_initialisation_is_kaiming_fan_out_and_a_function_of_the_key() -> None:
    _, features = example_shapes("resnet18")
    module = Reconstruction("resnet18")
    shapes = variable_shapes(module, features)
    variables = init_variables(shapes, jax.random.key(3))
    declared = jax.eval_shape(module.init, jax.random.key(0), features)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), variables) == jax.tree.map(
        lambda x: (x.shape, x.dtype), declared
    )
    student = variables["params"]["student"]
    transposed = student["layer1_0"]["conv1"]["kernel"]  # [in 512, 2, 2, out 256]
    assert transposed.std() == pytest.approx(np.sqrt(2 / (4 * 512)), rel=0.01)
    conv = student["layer1_0"]["conv2"]["kernel"]  # [3, 3, in 256, out 256]
    assert conv.std() == pytest.approx(np.sqrt(2 / (9 * 256)), rel=0.01)
    again = init_variables(shapes, jax.random.key(3))
    other = init_variables(shapes, jax.random.key(4))
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, again))
    assert not np.array_equal(conv, other["params"]["student"]["layer1_0"]["conv2"]["kernel"])


def test_batch_norm_equals_its_definition_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(300, 0.5, (4, 3, 3, 5)).astype(np.float32)
    module = BatchNorm(train=True)
    scale, bias = rng.uniform(1, 2, (2, 5)).astype(np.float32)
    mean, var = np.full(5, 299, np.float32), np.full(5, 2, np.float32)
    y, updated = module.apply(
        {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}},
        x,
        mutable=["batch_stats"],
    )
    exact = x.astype(np.float64)
    m, v = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    np.testing.assert_allclose(y, (exact - m) / np.sqrt(v + 1e-5) * scale + bias, atol=1e-3)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.9 * mean + 0.1 * m, rtol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 * var + 0.1 * v * 36 / 35, rtol=1e-4)


def test_the_derivatives_of_batch_norm_are_those_of_finite_differences() -> None:
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = rng.normal(3, 2, (2, 3, 2, 4))
        scale, bias, shift = rng.uniform(1, 2, (3, 4))
        check_grads(
            jax.jit(lambda x, scale, bias: _batch_normalized(x, scale, bias, shift, 1e-5, None)),
            (x, scale, bias),
            order=2,
        )
