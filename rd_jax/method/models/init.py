"""Initialise networks without running or compiling a forward pass."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from rd_jax.method.models.bottleneck import Bottleneck
from rd_jax.method.models.teacher import BACKBONES, Teacher


def variable_shapes(module: nn.Module, *inputs: Any) -> Any:
    """Return the variables of `module` as ShapeDtypeStructs."""
    # Make the key inside: making one outside would compile.
    return jax.eval_shape(lambda *inputs: module.init(jax.random.key(0), *inputs), *inputs)


def example_shapes(backbone: str) -> tuple[Any, Any]:
    """Return one 32x32 image and its features as ShapeDtypeStructs."""
    channels = BACKBONES[backbone].planes * BACKBONES[backbone].block.expansion
    sizes = (32, 3), (8, channels), (4, 2 * channels), (2, 4 * channels)
    image, *features = (jax.ShapeDtypeStruct((1, n, n, c), jnp.float32) for n, c in sizes)
    return image, tuple(features)


def teacher_shapes(backbone: str, layer4: bool = False) -> Any:
    """Return the teacher's variables as ShapeDtypeStructs; `layer4` adds its fourth stage."""
    image, features = example_shapes(backbone)
    shapes = variable_shapes(Teacher(backbone), image)
    if not layer4:
        return shapes
    stage = variable_shapes(Bottleneck(backbone, "pre"), features)
    return {collection: tree | stage[collection] for collection, tree in shapes.items()}


def init_variables(shapes: Any, rng: jax.Array) -> dict[str, Any]:
    """Draw variables of these shapes as float32 numpy arrays, a pure function of the key `rng`.

    The distributions are those of a module's `init` (kernels: normal, variance 2 / fan_out;
    BatchNorm: the identity). NumPy draws them in a second, while a jitted `init` compiles for half
    a minute.
    """
    generator = np.random.default_rng(np.asarray(jax.random.key_data(rng)))

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name == "kernel":
            # Draw transposed kernels [I, 2, 2, O] as [2, 2, O, I]: the measured figures of a seed
            # were made in that order.
            is_transposed = shape[1:3] == (2, 2)
            drawn = (*shape[1:], shape[0]) if is_transposed else shape
            fan_out = drawn[0] * drawn[1] * drawn[3]
            values = generator.standard_normal(drawn, np.float32) * np.float32(np.sqrt(2 / fan_out))
            return np.ascontiguousarray(np.moveaxis(values, 3, 0)) if is_transposed else values
        return np.full(shape, {"scale": 1, "bias": 0, "mean": 0, "var": 1}[name], np.float32)

    leaves = flatten_dict(shapes).items()
    return unflatten_dict({path: draw(path[-1], leaf.shape) for path, leaf in leaves})
