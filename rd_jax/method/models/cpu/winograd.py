"""3x3 convolutions with fewer products."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_Matrix = tuple[tuple[float, ...], ...]
_PADDING = ((0, 0), (1, 1), (1, 1), (0, 0))


class _Algorithm(NamedTuple):
    """Two outputs along one axis: y = of_outputs [(of_kernel k) * (of_inputs x)], for 3 taps k."""

    of_inputs: _Matrix
    of_kernel: _Matrix
    of_outputs: _Matrix


_OF_STRIDE = {
    1: _Algorithm(  # F(2, 3)
        ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
        ((1, 1, 1, 0), (0, 1, -1, -1)),
    ),
    2: _Algorithm(  # F(2, 2) of the outer taps; the middle tap sees other inputs
        ((1, 0, -1, 0, 0), (0, 0, 1, 0, 0), (0, 0, -1, 0, 1), (0, 1, 0, 0, 0), (0, 0, 0, 1, 0)),
        ((1, 0, 0), (1, 0, 1), (0, 0, 1), (0, 1, 0), (0, 1, 0)),
        ((1, 1, 0, 1, 0), (0, 1, 1, 0, 1)),
    ),
}


@partial(jax.jit, static_argnames="stride")  # traced once for all layers of a shape
def winograd(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Return a 3x3 convolution, padding 1, stride 1 or 2, whose output has even height and width.

    Each 2x2 of the output comes from one tile of the input, by 16 products instead of 36, or by 25
    for stride 2 (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016). The
    error is that of float32, 1e-6.
    """
    return _convolved(x, kernel, stride)


@jax.jit
def gradient_of_input(cotangent: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the gradient of the input of `winograd`, stride 1: a convolution, kernel turned."""
    return _convolved(cotangent, kernel, stride=1, is_turned=True)


@jax.jit
def gradient_of_kernel(x: jax.Array, cotangent: jax.Array) -> jax.Array:
    """Return the gradient [3, 3, I, O] of the kernel of `winograd`, stride 1, by 16 products."""
    of_inputs, of_kernel, of_outputs = _OF_STRIDE[1]
    to_kernel, from_outputs = (tuple(zip(*m, strict=True)) for m in (of_kernel, of_outputs))
    tiles = _tiles(of_inputs, jnp.pad(x, _PADDING), 2), _tiles(from_outputs, cotangent, 2)
    pairs = zip(*tiles, strict=True)
    products = [(lax.collapse(b, 0, 3).T @ lax.collapse(a, 0, 3)).T for a, b in pairs]
    rows = [jnp.stack(_combined(to_kernel, products[i : i + 4])) for i in (0, 4, 8, 12)]
    return jnp.stack(_combined(to_kernel, rows))


def _convolved(x: jax.Array, kernel: jax.Array, stride: int, is_turned: bool = False) -> jax.Array:
    """Return the convolution; a turned kernel [I, O] is [O, I], and its taps are in reverse order.

    Reversed taps exchange the first and last row of the transform, which XLA makes only once.
    """
    of_inputs, of_kernel, of_outputs = _OF_STRIDE[stride]
    num = len(of_kernel)
    weights = [w for row in _combined(of_kernel, kernel) for w in _combined(of_kernel, row)]
    if is_turned:
        weights = [weights[num * i + j] for i in (3, 1, 2, 0) for j in (3, 1, 2, 0)]
    # Sum over another axis instead of transposing the kernel, which XLA would copy.
    axes = (((3,), (int(is_turned),)), ((), ()))
    tiles = _tiles(of_inputs, jnp.pad(x, _PADDING), 2 * stride)
    products = [lax.dot_general(*pair, axes) for pair in zip(tiles, weights, strict=True)]
    of_rows = [_combined(of_outputs, products[i : i + num]) for i in range(0, num**2, num)]
    even_columns, odd_columns = (
        jnp.stack(_combined(of_outputs, column), axis=2) for column in zip(*of_rows, strict=True)
    )
    y = jnp.stack([even_columns, odd_columns], axis=4)
    batch, rows, _, columns, _, features = y.shape
    return y.reshape(batch, 2 * rows, 2 * columns, features)


def _tiles(matrix: _Matrix, x: jax.Array, step: int) -> list[jax.Array]:
    """Return the matrix times each tile, along height and width; tiles are `step` apart."""

    def along(axis: int, x: jax.Array) -> list[jax.Array]:
        num, first_end = len(matrix[0]), x.shape[axis] - len(matrix[0]) + 1
        seen = [lax.slice_in_dim(x, i, first_end + i, step, axis) for i in range(num)]
        return _combined(matrix, seen)

    return [tile for row in along(1, x) for tile in along(2, row)]


def _combined(matrix: _Matrix, arrays: Sequence[jax.Array] | jax.Array) -> list[jax.Array]:
    """Return the matrix times a vector of arrays."""
    products = [[c * a for c, a in zip(row, arrays, strict=True) if c] for row in matrix]
    return [sum(terms[1:], start=terms[0]) for terms in products]
