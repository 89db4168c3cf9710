"""3x3 convolutions with fewer products."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_Matrix = tuple[tuple[float, ...], ...]


class _Algorithm(NamedTuple):
    """Along one axis, two outputs y = of_outputs [(of_kernel k) * (of_inputs x)] of 3 taps k."""

    of_inputs: _Matrix
    of_kernel: _Matrix
    of_outputs: _Matrix


_OF_STRIDE = {
    1: _Algorithm(  # F(2, 3)
        ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
        ((1, 1, 1, 0), (0, 1, -1, -1)),
    ),
    2: _Algorithm(  # F(2, 2) of the outer taps, the middle one sees other inputs
        ((1, 0, -1, 0, 0), (0, 0, 1, 0, 0), (0, 0, -1, 0, 1), (0, 1, 0, 0, 0), (0, 0, 0, 1, 0)),
        ((1, 0, 0), (1, 0, 1), (0, 0, 1), (0, 1, 0), (0, 1, 0)),
        ((1, 1, 0, 1, 0), (0, 1, 1, 0, 1)),
    ),
}


def winograd(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Return a 3x3 convolution, padding 1, stride 1 or 2, whose output has even height and width.

    Lavin and Gray (Fast Algorithms for Convolutional Neural Networks, CVPR 2016): each 2x2 of the
    output comes from one tile of the input, in 16 products for 36, with stride 2 in 25. The error
    is that of float32, 1e-6.
    """
    return _convolved(x, kernel, stride, in_axis=0)


def gradient_of_input(cotangent: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return what backpropagation through `winograd`, stride 1, hands on: the kernel is turned."""
    return _convolved(cotangent, kernel[::-1, ::-1], stride=1, in_axis=1)


def _convolved(x: jax.Array, kernel: jax.Array, stride: int, in_axis: int) -> jax.Array:
    """Return the convolution that sums over `in_axis` of each kernel element: 0 for [I, O]."""
    of_inputs, of_kernel, of_outputs = _OF_STRIDE[stride]

    def tiles(x: jax.Array, axis: int) -> list[jax.Array]:
        count = len(of_inputs[0])
        ends = (x.shape[axis] - count + i + 1 for i in range(count))
        seen = [lax.slice_in_dim(x, i, end, 2 * stride, axis) for i, end in enumerate(ends)]
        return _combined(of_inputs, seen)

    def product(tile: jax.Array, weight: jax.Array) -> jax.Array:
        # XLA copies a transposed kernel, but not one that it is told to sum over otherwise.
        return lax.dot_general(tile, weight, (((3,), (in_axis,)), ((), ())))

    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    of_rows = []
    for x_row, kernel_row in zip(tiles(x, 1), _combined(of_kernel, kernel), strict=True):
        pairs = zip(tiles(x_row, 2), _combined(of_kernel, kernel_row), strict=True)
        of_rows.append(_combined(of_outputs, [product(*pair) for pair in pairs]))
    even_columns, odd_columns = (
        jnp.stack(_combined(of_outputs, column), axis=2) for column in zip(*of_rows, strict=True)
    )
    y = jnp.stack([even_columns, odd_columns], axis=4)
    batch, rows, _, columns, _, features = y.shape
    return y.reshape(batch, 2 * rows, 2 * columns, features)


def _combined(matrix: _Matrix, arrays: Sequence[jax.Array] | jax.Array) -> list[jax.Array]:
    """Return the matrix times a vector of arrays."""
    products = [[c * a for c, a in zip(row, arrays, strict=True) if c] for row in matrix]
    return [sum(terms[1:], start=terms[0]) for terms in products]
