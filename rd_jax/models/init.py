"""Initialisation without running, or compiling, a forward pass."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from rd_jax.models.resnet import Teacher


def variable_shapes(module: nn.Module, *inputs: Any) -> Any:
    """The variables of `module` as ShapeDtypeStructs."""
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)


def example_shapes(backbone: str) -> tuple[Any, Any]:
    """ShapeDtypeStructs of one 32x32 image and its features."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    features, _ = jax.eval_shape(Teacher(backbone).init_with_output, jax.random.key(0), image)
    return image, features


def init_variables(module: nn.Module, rng: jax.Array, *inputs: Any) -> dict[str, Any]:
    """Variables of `module` as float32 numpy arrays, a pure function of the key `rng`.

    The same distributions as `module.init` (kernels: normal, variance 2 / fan_out; BatchNorm: the
    identity), drawn with NumPy: a jitted `init` compiles for half a minute, this takes a second.
    """
    generator = np.random.default_rng(np.asarray(jax.random.key_data(rng)))

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name == "kernel":
            fan_out = shape[0] * shape[1] * shape[3]
            values = generator.standard_normal(shape, np.float32)
            return values * np.float32(np.sqrt(2 / fan_out))
        return np.full(shape, {"scale": 1, "bias": 0, "mean": 0, "var": 1}[name], np.float32)

    shapes = flatten_dict(variable_shapes(module, *inputs))
    return unflatten_dict({path: draw(path[-1], leaf.shape) for path, leaf in shapes.items()})
