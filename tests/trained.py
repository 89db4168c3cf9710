"""States, steps and trainings of the tiny backbone, for tests of what comes after."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rd_jax import TrainState, create_train_state, make_train_step
from rd_jax.config import EVALUATED_ALIKE, Config, as_dict, get_config
from rd_jax.method.loss import LOSSES
from rd_jax.method.metrics import counted, no_pixels
from rd_jax.method.thresholds import NormalScores, Thresholds, pixel_table, thresholds_of
from rd_jax.run.plan import model_of, optimizer_of, trained_model_of
from rd_jax.store import checkpoint
from rd_jax.store.thresholds import StoredThresholds, write_thresholds
from rd_jax.store.workdir import Workdir
from rd_jax.weights.teacher import find_teacher

SIZE = 32
THRESHOLDS = Thresholds("holdout", 20, 0.01, 0.5, 0.4, 0.1, 0.5, 1 / 21, 0.001)


def first_state(config: Config) -> TrainState:
    """The state before the first step, of the config's networks and optimiser."""
    return create_train_state(model_of(config), optimizer_of(config), jax.random.key(0))


def train_step_of(config: Config) -> Callable:
    """The jitted training step of the config."""
    loss = LOSSES[config.loss]
    return jax.jit(make_train_step(trained_model_of(config), optimizer_of(config), loss))


def draw_maps(seed: int, num_images: int = 20) -> np.ndarray:
    """float32 [N, SIZE, SIZE], as the maps of normal images might be."""
    shape = (num_images, SIZE, SIZE)
    return np.random.default_rng(seed).gamma(8, 0.12, shape).astype(np.float32)


def normal_scores(maps: np.ndarray, is_held_out: bool = True) -> NormalScores:
    """What is kept of the maps of normal images; the score is the maximum."""
    maxima = maps.max((1, 2))
    counts = counted(no_pixels(), maps, np.zeros(maps.shape, bool))
    return NormalScores(is_held_out, maxima, maxima, pixel_table(counts))


def save_training(folder: Path, holdout: bool | None = True, **changes: object) -> Path:
    """Leave in `folder`, WORKDIR/CATEGORY, what a training of 7 steps would.

    Thresholds come of drawn maps; with holdout=None there are none. `changes` are of the
    checkpoint's metadata.
    """
    config = get_config(
        category="weave",
        teacher_weights="random",
        backbone="tiny",
        image_size=SIZE,
        dtype="float32",
        holdout=0.1 if holdout else 0.0,
    )
    teacher = find_teacher("tiny", "random")
    variables = jax.device_get(first_state(config).student_variables)
    metadata = {
        "config": as_dict(config),
        "teacher_weights": teacher.weights,
        "teacher_sha256": teacher.sha256,
        "train_sha256": {folder.name: ""},
        "train_hashes": {folder.name: []},
        "last_step": 7,
        "timing": {"train_seconds": 1.0, "images_per_second": 2.0},
        **changes,
    }
    training = Workdir(folder.parent).training(folder.name)
    with checkpoint.writer(training.checkpoints) as save:
        save(7, variables, {"m": np.zeros(1)}, metadata)
    if holdout is not None:
        normal = normal_scores(draw_maps(0), holdout)
        stored = StoredThresholds(
            checkpoint.load_latest(training.checkpoints).checksum,
            {name: as_dict(config)[name] for name in EVALUATED_ALIKE},
            thresholds_of(normal, config.false_positive_rate, config.pixel_false_positive_rate),
            normal,
        )
        write_thresholds(training.evaluation(folder.name).thresholds, stored)
    return folder


def largest_difference(a: Any, b: Any) -> float:
    """Of all leaves of two trees."""

    def difference(x, y):
        return float(np.max(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64))))

    return max(jax.tree.leaves(jax.tree.map(difference, a, b)))
