"""Going on from checkpoints: where they are, whether they fit, and the state that they hold."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from rd_jax.config import Config, Depends, as_dict, differing, with_seed
from rd_jax.method.train import TrainState, create_train_state
from rd_jax.run.build import model_of, optimizer_of
from rd_jax.store import checkpoint
from rd_jax.store.workdir import Training, moved_aside, training_of, trainings_of
from rd_jax.system import hosts
from rd_jax.system.errors import UserError
from rd_jax.weights.teacher import LoadedTeacher

logger = logging.getLogger(__name__)


def planned(config: Config, workdir: Path, category: str) -> list[tuple[Config, Training]]:
    """The config and place of each training that a category is to have.

    Raises UserError if it has those of the other layout already.
    """
    there = [t for t in trainings_of(workdir, category) if t.checkpoints.is_dir()]
    folder = workdir / category
    if config.seeds and any(training.seed is None for training in there):
        raise UserError(
            f"{folder} holds a training of one seed, without config.seeds: choose another --workdir"
        )
    if not config.seeds and any(training.seed is not None for training in there):
        raise UserError(
            f"{folder} holds trainings of several seeds: set --config.seeds, or choose another "
            "--workdir"
        )
    if not config.seeds:
        return [(config, training_of(workdir, category))]
    return [(with_seed(config, s), training_of(workdir, category, s)) for s in config.seeds]


def check_teacher(teacher: LoadedTeacher, saved: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError if the checkpoint in `folder` was trained with another teacher."""
    if teacher.sha256 != saved["teacher_sha256"]:
        raise UserError(
            f"the checkpoint in {folder} was trained with the teacher weights "
            f"{saved['teacher_weights']} (sha256 {saved['teacher_sha256'][:12]}...), not with "
            f"{teacher.weights} ({teacher.sha256[:12]}...): set teacher_weights"
        )


def check_same_training(
    config: Config, train_sha256: str, teacher: LoadedTeacher, workdir: Path, category: str
) -> None:
    """Compares the config with all that a category has, of any seed.

    Raises UserError if going on would mix two trainings, or average over what differs in more
    than the seed.
    """
    for training in trainings_of(workdir, category):
        saved = checkpoint.latest_metadata(training.checkpoints)
        if saved is None:
            continue
        check_teacher(teacher, saved, training.folder)
        changes = [
            f"{name} ({before!r}, now {now!r})"
            for name, before, now in differing(saved["config"], as_dict(config), Depends.TRAINING)
            if name != "seed" or not config.seeds
        ]
        if changes:
            raise UserError(
                f"{training.folder} was trained with another config: {', '.join(changes)}; choose "
                "another --workdir, or start anew with --restart"
            )
        if saved["train_sha256"] != train_sha256:
            raise UserError(
                f"{training.folder} was trained with other training images than are there now; "
                "choose another --workdir, or start anew with --restart"
            )


def initial_state(
    config: Config, training: Training, last_step: int
) -> tuple[TrainState, Mapping[str, float | None]]:
    """A new state, or that of the latest good checkpoint, with the time spent so far.

    The optimiser's state is read if there are steps left, before `last_step`, that need it.
    Damaged checkpoints are moved out of the way.
    """
    state = create_train_state(model_of(config), optimizer_of(config), jax.random.key(config.seed))
    for step in checkpoint.steps(training.checkpoints):
        hosts.wait_for_all(f"restoring {step}")  # all have listed the same steps
        saved = error = None
        opt_state = state.opt_state
        try:
            saved = checkpoint.load(training.checkpoints, step)
            if step < last_step:
                like = jax.device_get(opt_state)
                opt_state = checkpoint.load_opt_state(training.checkpoints, step, like)
        except checkpoint.DamagedCheckpointError as caught:
            error = caught
        if not hosts.all_agree(error is None) or saved is None:
            if hosts.is_first():
                kept = moved_aside(training.checkpoints / str(step), training.damaged)
                logger.warning("%s; it is kept in %s", error or "another process failed", kept)
            continue
        variables = saved.student_variables
        state = TrainState(
            variables["params"], variables["batch_stats"], opt_state, state.step + step
        )
        return state, saved.metadata["timing"]
    return state, {"train_seconds": 0.0, "images_per_second": None}
