"""States, steps and checkpoints of the tiny backbone, for tests of what comes after."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rd_jax import TrainState, create_train_state, make_train_step
from rd_jax.config import Config, as_dict, get_config
from rd_jax.method.calibration import Calibration
from rd_jax.method.loss import LOSSES
from rd_jax.run.build import model_of, optimizer_of
from rd_jax.store import checkpoint
from rd_jax.store.distances import NormalDistances, write_distances
from rd_jax.store.workdir import Training
from rd_jax.weights.teacher import find_teacher

SIZE = 32
CALIBRATION = Calibration("holdout", 20, 0.01, 0.5, 0.4, 0.1, 0.5, 1 / 21, 0.001, "float32")


def first_state(config: Config) -> TrainState:
    """The state before the first step, of the config's networks and optimiser."""
    return create_train_state(model_of(config), optimizer_of(config), jax.random.key(0))


def train_step_of(config: Config) -> Callable:
    """The jitted training step of the config."""
    loss = LOSSES[config.loss]
    return jax.jit(make_train_step(model_of(config), optimizer_of(config), loss))


def draw_distances(seed: int, num_images: int = 20) -> tuple[np.ndarray, ...]:
    """At each scale of images of `SIZE` pixels, as those of normal images might be."""
    rng = np.random.default_rng(seed)
    shapes = [(num_images, SIZE // stride, SIZE // stride) for stride in (4, 8, 16)]
    return tuple(rng.gamma(8, 0.04, shape).astype(np.float32) for shape in shapes)


def save_training(
    folder: Path,
    holdout: bool | None = True,
    dtypes: Sequence[str] = ("float32",),
    dtype: str = "float32",
    **changes: object,
) -> Path:
    """Leaves in `folder` what a training of 7 steps would; `changes` are of the metadata.

    What normal images gave is drawn, the first of `dtypes` with seed 0; of none for holdout=None.
    """
    changes_of_config: dict = dict(backbone="tiny", image_size=SIZE, dtype=dtype)
    changes_of_config |= dict(holdout=0.1 if holdout else 0.0)
    config = get_config(category="weave", teacher_weights="random", **changes_of_config)
    teacher = find_teacher("tiny", "random")
    variables = jax.device_get(first_state(config).student_variables)
    metadata = {
        "config": as_dict(config),
        "teacher_weights": teacher.weights,
        "teacher_sha256": teacher.sha256,
        "last_step": 7,
        "dtype": dtype,
        **changes,
    }
    training = Training(folder, "weave")
    with checkpoint.writer(training.checkpoints) as save:
        save(7, variables, {"m": np.zeros(1)}, metadata)
    if holdout is not None:
        by_dtype = {name: draw_distances(seed) for seed, name in enumerate(dtypes)}
        distances = NormalDistances(holdout, checkpoint.checksum(variables), by_dtype)
        write_distances(training.distances, distances)
    return folder


def largest_difference(a: Any, b: Any) -> float:
    def difference(x, y):
        return float(np.max(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64))))

    return max(jax.tree.leaves(jax.tree.map(difference, a, b)))
