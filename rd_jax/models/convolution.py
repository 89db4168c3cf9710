"""Convolutions on CPU as matrix products, where XLA's own lose to them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


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
    above all their gradients), and not slower with strides; Winograd's algorithm is up to twice
    as fast for other 3x3 kernels, but not with their gradients.
    """
    if not _is_for_cpu(x):
        return lax.conv_general_dilated(x, kernel, strides, padding, **keywords)
    height, width, _, features = kernel.shape
    num_positions = x.shape[0] * (x.shape[1] // strides[0]) * (x.shape[2] // strides[1])
    is_pointwise = (height, width) == (1, 1)
    is_even_3x3 = (height, width) == (3, 3) and x.shape[1] % 2 == x.shape[2] % 2 == 0
    if is_pointwise or num_positions <= features or tuple(strides) != (1, 1):
        return _product_of_patches(x, kernel, strides, padding)
    if is_even_3x3 and tuple(padding) == ((1, 1), (1, 1)):
        return _winograd(x, kernel)
    return lax.conv_general_dilated(x, kernel, strides, padding, **keywords)


def convolve_transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution, stride h, w: [B, H, W, I] with [h, w, I, O] -> [B, h*H, w*W, O].

    The patches that it writes do not overlap, so it is a matrix product followed by
    depth-to-space. On CPU it is one product for each of the kernel's elements, since a single one
    copies the kernel.
    """
    batch, height, width, _ = x.shape
    kernel_height, kernel_width, _, features = kernel.shape
    if _is_for_cpu(x):
        rows = [jnp.stack([x @ weight for weight in row], axis=3) for row in kernel]
        y = jnp.stack(rows, axis=2)
    else:
        y = jnp.einsum("bhwi,klio->bhkwlo", x, kernel)
    return y.reshape(batch, kernel_height * height, kernel_width * width, features)


def _is_for_cpu(x: jax.Array) -> bool:
    is_exported = not isinstance(x.shape[0], int)  # a symbolic batch: any size, any platform
    return jax.default_backend() == "cpu" and not is_exported


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


@jax.custom_vjp
def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3x3 convolution, padding 1, of even height and width: 16 products for 36.

    F(2x2, 3x3) of Lavin and Gray (Fast Algorithms for Convolutional Neural Networks, CVPR 2016):
    each 2x2 of the output comes from 4x4 of the input. The error is that of float32, 1e-6.
    """
    batch, height, width, _ = x.shape

    def transform_input(x: jax.Array, axis: int) -> list[jax.Array]:
        last = x.shape[axis] - 4
        a, b, c, d = (lax.slice_in_dim(x, i, last + i + 1, 2, axis) for i in range(4))
        return [a - c, b + c, c - b, b - d]

    def transform_kernel(kernel: jax.Array) -> list[jax.Array]:
        a, b, c = kernel
        return [a, (a + b + c) / 2, (a - b + c) / 2, c]

    def transform_output(products: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
        a, b, c, d = products
        return a + b + c, b - c - d

    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    of_rows = []
    for x_row, kernel_row in zip(transform_input(x, 1), transform_kernel(kernel), strict=True):
        pairs = zip(transform_input(x_row, 2), transform_kernel(kernel_row), strict=True)
        of_rows.append(transform_output([tile @ weight for tile, weight in pairs]))
    even_columns, odd_columns = (
        jnp.stack(transform_output(column), axis=2) for column in zip(*of_rows, strict=True)
    )
    y = jnp.stack([even_columns, odd_columns], axis=4)
    return y.reshape(batch, height, width, -1)


def _with_gradient(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Callable]:
    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    return jax.vjp(plain, x, kernel)


_winograd.defvjp(_with_gradient, lambda gradient, cotangent: gradient(cotangent))
