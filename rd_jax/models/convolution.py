"""Convolutions on CPU as matrix products, where XLA's own lose to them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rd_jax.models.winograd import gradient_of_input, winograd


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **keywords: Any,
) -> jax.Array:
    """`lax.conv_general_dilated` of [B, H, W, I] with [h, w, I, O], for `flax.linen.Conv`.

    On CPU a product of the patches with the kernel is up to 80 times as fast where the patches
    are no copies (kernel 1x1) or hold fewer values than the kernel (deep stages of small images,
    above all their gradients), and not slower with strides; `winograd` is up to twice as fast for
    other 3x3 kernels, but not for the gradients of kernels nor, when differentiated, with strides.
    """
    is_exported = not isinstance(x.shape[0], int)  # a symbolic batch: any size, any platform
    if jax.default_backend() != "cpu" or is_exported:
        return lax.conv_general_dilated(x, kernel, strides, padding, **keywords)
    height, width, _, features = kernel.shape
    num_positions = x.shape[0] * (x.shape[1] // strides[0]) * (x.shape[2] // strides[1])
    is_pointwise = (height, width) == (1, 1)
    is_tiled = (
        (height, width) == (3, 3)
        and tuple(padding) == ((1, 1), (1, 1))
        and strides[0] == strides[1] <= 2
        and x.shape[1] % (2 * strides[0]) == x.shape[2] % (2 * strides[1]) == 0
    )
    if is_pointwise or num_positions <= features:
        return _product_of_patches(x, kernel, strides, padding)
    if is_tiled:
        return _tiled(x, kernel, strides[0])
    return _untiled(x, kernel, strides, padding, **keywords)


def convolve_transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution, stride h, w: [B, H, W, I] with [I, h, w, O] -> [B, h*H, w*W, O].

    The patches that it writes do not overlap, so it is a matrix product followed by
    depth-to-space; the order of the kernel's axes saves a copy of it.
    """
    batch, height, width, channels = x.shape
    _, kernel_height, kernel_width, features = kernel.shape
    y = x @ kernel.reshape(channels, -1)
    y = y.reshape(batch, height, width, kernel_height, kernel_width, features)
    y = y.transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(batch, kernel_height * height, kernel_width * width, features)


def _untiled(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **keywords: Any,
) -> jax.Array:
    if tuple(strides) != (1, 1):
        return _product_of_patches(x, kernel, strides, padding)
    return lax.conv_general_dilated(x, kernel, strides, padding, **keywords)


def _product_of_patches(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]]
) -> jax.Array:
    kernel_height, kernel_width, _, features = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows = (x.shape[1] - kernel_height) // strides[0] + 1
    columns = (x.shape[2] - kernel_width) // strides[1] + 1

    def seen_by(i: int, j: int) -> jax.Array:
        """[B, rows, columns, I]: what the kernel's element i, j is multiplied with."""
        last = (strides[0] * (rows - 1) + i, strides[1] * (columns - 1) + j)
        return x[:, i : last[0] + 1 : strides[0], j : last[1] + 1 : strides[1]]

    patches = [seen_by(i, j) for i in range(kernel_height) for j in range(kernel_width)]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, features)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _tiled(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return winograd(x, kernel, stride)


def _tiled_forward(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, Any]:
    def untiled(x: jax.Array, kernel: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        strides, padding = (stride, stride), ((1, 1), (1, 1))
        return _untiled(x, kernel, strides, padding, dimension_numbers=numbers)

    y, untiled_gradients = jax.vjp(untiled, x, kernel)
    if stride == 1:
        y = winograd(x, kernel, stride)
    return y, (kernel, untiled_gradients)


def _tiled_backward(stride: int, saved: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    kernel, untiled_gradients = saved
    of_x, of_kernel = untiled_gradients(cotangent)
    if stride == 1:
        of_x = gradient_of_input(cotangent, kernel)
    return of_x, of_kernel


_tiled.defvjp(_tiled_forward, _tiled_backward)
