"""All arrays of a training's latest checkpoint."""

from pathlib import Path

import jax
import numpy as np

from rd_jax.config import from_dict
from rd_jax.method.train import train_state_shapes
from rd_jax.run.plan import model_of, optimizer_of
from rd_jax.store import checkpoint


def leaves(training: Path) -> list[np.ndarray]:
    """The step, the student's variables and the optimiser's state."""
    loaded = checkpoint.load_latest(training / "checkpoints")
    config = from_dict(loaded.metadata["config"])
    shapes = train_state_shapes(model_of(config), optimizer_of(config), config.ema)
    like = jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes.rest)
    rest = checkpoint.load_rest(training / "checkpoints", loaded.step, like)
    arrays = jax.tree.leaves((loaded.student_variables, rest))
    return [np.int32(loaded.step), *map(np.asarray, arrays)]


def assert_same_leaves(one: Path, other: Path) -> None:
    """Two trainings ended with equal bits."""
    for a, b in zip(leaves(one), leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
