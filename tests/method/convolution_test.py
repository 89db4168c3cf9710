"""Convolutions as products equal XLA's own."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rd_jax.method.models import cpu
from rd_jax.method.models.blocks import TransposedConv2x2
from rd_jax.method.models.cpu import convolve

NUMBERS = ("NHWC", "HWIO", "NHWC")


@pytest.fixture
def no_layer_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_LARGE", 0)


@partial(jax.jit, static_argnums=0)
def value_and_gradients(function: Callable, x: jax.Array, kernel: jax.Array, cotangent: jax.Array):
    """Compiled as one program, and not operation by operation."""
    value, pull_back = jax.vjp(function, x, kernel)
    return value, *pull_back(cotangent)


@pytest.mark.usefixtures("no_layer_is_small")
@pytest.mark.parametrize(
    ("size", "channels", "features", "kernel_size", "stride"),
    [
        ((8, 12), 5, 7, 3, 1),  # Winograd's
        ((8, 12), 5, 7, 3, 2),  # likewise
        ((6, 12), 5, 7, 3, 2),  # an odd output: XLA's
        ((7, 8), 5, 7, 3, 1),  # odd height: XLA's
        ((4, 4), 3, 40, 3, 1),  # few positions: a product of patches
        ((4, 6), 3, 40, 3, 2),
        ((6, 4), 5, 7, 1, 1),
        ((6, 4), 5, 7, 1, 2),
    ],
)
def test_values_and_gradients_equal_xla(
    size: tuple[int, int], channels: int, features: int, kernel_size: int, stride: int
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, channels), np.float32)
    kernel = rng.standard_normal((kernel_size, kernel_size, channels, features), np.float32)
    strides, padding = (stride, stride), 2 * ((kernel_size // 2, kernel_size // 2),)

    def own(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolve(x, kernel, strides, padding, dimension_numbers=NUMBERS)

    def reference(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NUMBERS)

    shape = jax.eval_shape(reference, x, kernel).shape
    cotangent = rng.standard_normal(shape, np.float32)
    expected, *gradients = value_and_gradients(reference, x, kernel, cotangent)
    np.testing.assert_allclose(jax.jit(own)(x, kernel), expected, atol=2e-5)
    own_value, *own_gradients = value_and_gradients(own, x, kernel, cotangent)
    np.testing.assert_allclose(own_value, expected, atol=2e-5)
    for actual, gradient in zip(own_gradients, gradients, strict=True):
        np.testing.assert_allclose(actual, gradient, atol=1e-4)


@pytest.mark.usefixtures("no_layer_is_small")
@pytest.mark.parametrize("stride", [1, 2])
def test_forward_mode_and_second_derivatives_equal_xla(stride: int) -> None:
    rng = np.random.default_rng(0)
    x, x_tangent = rng.standard_normal((2, 2, 8, 8, 3), np.float32)
    kernel, kernel_tangent = rng.standard_normal((2, 3, 3, 3, 5), np.float32)

    @partial(jax.jit, static_argnums=0)
    def derivatives(convolution: Callable, x, kernel, x_tangent, kernel_tangent) -> tuple:
        def y(x: jax.Array, kernel: jax.Array) -> jax.Array:
            padding = ((1, 1), (1, 1))
            return convolution(x, kernel, (stride, stride), padding, dimension_numbers=NUMBERS)

        def along(x: jax.Array) -> jax.Array:
            return jax.grad(lambda x: jnp.sum(y(x, kernel) ** 3))(x)

        forward = jax.jvp(y, (x, kernel), (x_tangent, kernel_tangent))
        return *forward, jax.jvp(along, (x,), (x_tangent,))[1]

    given = x, kernel, x_tangent, kernel_tangent
    own, expected = (derivatives(c, *given) for c in (convolve, lax.conv_general_dilated))
    for actual, reference in zip(own, expected, strict=True):
        np.testing.assert_allclose(actual, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


@pytest.mark.parametrize(
    ("in_features", "keywords"),
    [
        (4, {"rhs_dilation": (2, 2)}),
        (4, {"lhs_dilation": (2, 2)}),
        (2, {"feature_group_count": 2}),
        (4, {"batch_group_count": 2}),
        (4, {"dimension_numbers": ("NHWC", "HWOI", "NHWC")}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("size", [1, 3])
def test_other_convolutions_are_left_to_xla(size: int, in_features: int, keywords: dict) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 8, 4), np.float32)
    kernel = rng.standard_normal((size, size, in_features, 4), np.float32)
    padding = 2 * ((size // 2, size // 2),)
    keywords = {"dimension_numbers": NUMBERS} | keywords
    expected = lax.conv_general_dilated(x, kernel, (1, 1), padding, **keywords)
    np.testing.assert_array_equal(convolve(x, kernel, (1, 1), padding, **keywords), expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_layer_is_winograds_if_it_is_large(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, kernel = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 4, 4))

    def primitives() -> str:
        shape = {"strides": (stride, stride), "padding": ((1, 1), (1, 1))}
        own = partial(convolve, **shape, dimension_numbers=NUMBERS)
        return str(jax.make_jaxpr(own)(x, kernel))

    multiplications = x.size * kernel.size // 4 // stride**2
    for least, is_own in ((multiplications, True), (multiplications + 1, False)):
        monkeypatch.setattr(cpu, "_LARGE", least)
        assert ("dot_general" in primitives()) == is_own
        assert ("conv_general_dilated" in primitives()) != is_own


def test_transposed_convolution_equals_xla() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 5), np.float32)
    kernel = rng.standard_normal((5, 2, 2, 7), np.float32)

    def reference(x: jax.Array, kernel: jax.Array) -> jax.Array:
        of_outputs = kernel.transpose(1, 2, 3, 0)
        return lax.conv_transpose(x, of_outputs, (2, 2), "VALID", transpose_kernel=True)

    def own(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return TransposedConv2x2(7).apply({"params": {"kernel": kernel}}, x)

    cotangent = rng.standard_normal((2, 6, 8, 7), np.float32)
    expected, *gradients = value_and_gradients(reference, x, kernel, cotangent)
    actual, *own_gradients = value_and_gradients(own, x, kernel, cotangent)
    np.testing.assert_allclose(actual, expected, atol=2e-5)
    for of_own, gradient in zip(own_gradients, gradients, strict=True):
        np.testing.assert_allclose(of_own, gradient, atol=1e-4)
