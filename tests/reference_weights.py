"""Weights and images that PyTorch and rd_jax draw alike, from NumPy seeds."""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from rd_jax.weights.convert import torch_name

StateDict = dict[str, np.ndarray]


def draw_state_dict(shapes: Mapping[str, tuple[int, ...]]) -> StateDict:
    """A state dict in PyTorch's names and layouts, with BatchNorm statistics that matter.

    Each tensor depends on its name and shape alone.
    """

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if len(shape) == 4:
            fan = shape[0] * shape[2] * shape[3]
            return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan))
        if name.endswith(("running_mean", "bias")):
            return 0.1 * rng.standard_normal(shape, np.float32)
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)

    return {name: draw(name, tuple(shape)) for name, shape in shapes.items()}


def state_dict_of(variables: Any) -> StateDict:
    """A teacher's variables in PyTorch's names and layouts."""
    arrays = {torch_name(path): np.asarray(x) for path, x in flatten_dict(variables).items()}
    return {
        name: np.ascontiguousarray(a.transpose(3, 2, 0, 1)) if a.ndim == 4 else a
        for name, a in arrays.items()
    }


def draw_images(num_images: int, size: int, seed: int = 0) -> np.ndarray:
    """uint8 [N, size, size, 3]: noise over smooth gradients, so that features differ in space."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    phase = rng.uniform(0, 6, (num_images, 1, 1, 3))
    waves = np.sin(6 * x[..., None] + phase) + np.cos(5 * y[..., None] + 2 * phase)
    noise = rng.normal(0, 0.5, (num_images, size, size, 3))
    return np.clip(128 + 40 * (waves + noise), 0, 255).astype(np.uint8)


def sample(array: np.ndarray, count: int = 256) -> np.ndarray:
    """About `count` values, evenly spread over the array in C order."""
    flat = np.ascontiguousarray(array).ravel()
    return flat[:: max(1, flat.size // count)]
