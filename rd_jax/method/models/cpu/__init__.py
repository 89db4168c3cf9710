"""Convolutions on CPU as matrix products, where they are faster than XLA's own.

The table says how much longer it takes without each of them. Columns 1 and 2: WideResNet-50 at 256
pixels, a training step of 4 images, and scoring 8. Columns 3 and 4: ResNet-18, a training step of 8
images of 256 pixels, and of 16 of 32. Two cores, float32, medians of pairs in turns.

1x1 kernels as products                  27 %   27 %    2 %    8 %
patches where positions are few           0 %    3 %    0 %  124 %
Winograd's 3x3 with stride 1              7 %   26 %   15 %    -
gradient of its input                     0 %    -      6 %    -
gradient of its kernel (AVX-512)         29 %    -     32 %    -
Winograd's 3x3 with stride 2              -      8 %    -      -     (not used where differentiated)

A layer of fewer than 2^28 multiplications takes as long by XLA's own 3x3 convolution, to 4 % of a
step. That compiles in a fifth of the time.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rd_jax.method.models.cpu.winograd import gradient_of_input, gradient_of_kernel, winograd

NUMBERS = ("NHWC", "HWIO", "NHWC")
_LARGE = 2**28  # multiplications of a layer


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **keywords: Any,
) -> jax.Array:
    """Return `lax.conv_general_dilated` of [B, H, W, I] with [h, w, I, O], for `flax.linen.Conv`.

    It calls that function on other devices, and for dilation, groups or a symbolic batch.
    """
    height, width, channels, features = kernel.shape
    is_plain = (
        channels == x.shape[-1]
        and all(isinstance(size, int) for size in x.shape)  # else it is exported, for any platform
        and _is_default(keywords)
    )
    if not _is_on_cpu() or not is_plain:
        return lax.conv_general_dilated(x, kernel, strides, padding, **keywords)
    num_positions = x.shape[0] * (x.shape[1] // strides[0]) * (x.shape[2] // strides[1])
    is_tiled = (
        (height, width) == (3, 3)
        and tuple(padding) == ((1, 1), (1, 1))
        and strides[0] == strides[1] <= 2
        and x.shape[1] % (2 * strides[0]) == x.shape[2] % (2 * strides[1]) == 0
    )
    is_product = (height, width) == (1, 1) or num_positions <= features
    if is_product:
        return _product_of_patches(x, kernel, tuple(strides), tuple(padding))
    if is_tiled and num_positions * kernel.size >= _LARGE:
        return (_tiled if strides[0] == 1 else _tiled_strided)(x, kernel)
    return lax.conv_general_dilated(x, kernel, strides, padding, **keywords)


def _is_on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _is_default(keywords: dict[str, Any]) -> bool:
    """Return whether these arguments of `lax.conv_general_dilated` ask for a plain convolution."""
    numbers = keywords.get("dimension_numbers", NUMBERS)
    return (
        all(set(keywords.get(f"{side}_dilation") or {1}) == {1} for side in ("lhs", "rhs"))
        and keywords.get("batch_group_count", 1) == 1
        and lax.conv_dimension_numbers((1,) * 4, (1,) * 4, numbers)
        == lax.conv_dimension_numbers((1,) * 4, (1,) * 4, NUMBERS)
    )


@partial(jax.jit, static_argnums=(2, 3))  # traced once for each shape
def _product_of_patches(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> jax.Array:
    kernel_height, kernel_width, _, features = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows = (x.shape[1] - kernel_height) // strides[0] + 1
    columns = (x.shape[2] - kernel_width) // strides[1] + 1

    def seen_by(i: int, j: int) -> jax.Array:
        """Return [B, rows, columns, I]: the inputs that meet the kernel's element i, j."""
        last = (strides[0] * (rows - 1) + i, strides[1] * (columns - 1) + j)
        return x[:, i : last[0] + 1 : strides[0], j : last[1] + 1 : strides[1]]

    patches = [seen_by(i, j) for i in range(kernel_height) for j in range(kernel_width)]
    weights = kernel.reshape(-1, features)
    # A product of two axes: with more, backpropagation transposes larger arrays.
    y = jnp.concatenate(patches, axis=-1).reshape(-1, len(weights)) @ weights
    return y.reshape(len(x), rows, columns, features)


@jax.custom_jvp
def _tiled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return winograd(x, kernel, stride=1)


@_tiled.defjvp
def _tiled_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """Backpropagate by `gradient_of_input` and `gradient_of_kernel`."""
    (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
    y = winograd(x, kernel, stride=1)
    # Transposed here, because backpropagation transposes them once more.
    (of_x,) = jax.linear_transpose(lambda y: gradient_of_input(y, kernel), y)(x_tangent)
    (of_kernel,) = jax.linear_transpose(lambda y: gradient_of_kernel(x, y), y)(kernel_tangent)
    return y, of_x + of_kernel


@jax.custom_jvp
def _tiled_strided(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return winograd(x, kernel, stride=2)


@_tiled_strided.defjvp
def _tiled_strided_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """Differentiate XLA's own convolution, which is as fast."""
    conv = partial(lax.conv_general_dilated, window_strides=(2, 2), padding=((1, 1), (1, 1)))
    return jax.jvp(partial(conv, dimension_numbers=NUMBERS), primals, tangents)
