"""Going on from checkpoints: where they are, whether they fit, and the state that they hold."""

import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from rd_jax import checkpoint, hosts
from rd_jax.config import Config, as_dict, with_seed
from rd_jax.errors import UserError
from rd_jax.train import TrainState, create_train_state
from rd_jax.weights import LoadedTeacher

logger = logging.getLogger(__name__)

# What the trained parameters do not depend on, so that a checkpoint may be used with other values;
# for data and teacher, their hashes are compared.
_FREE_FIELDS = frozenset(
    {
        "data_dir",
        "category",
        "normal_class",
        "teacher_weights",
        "seeds",
        "blur_sigma",
        "image_score",
        "log_every_steps",
        "eval_every_epochs",
        "checkpoint_every_epochs",
        "tensorboard",
    }
)
EVALUATION_FIELDS = _FREE_FIELDS | {"image_size", "scales", "batch_size", "dtype"}


def trainings(config: Config, folder: Path) -> list[tuple[Config, Path]]:
    """The config and folder of each training that one category's folder is to hold.

    Raises UserError if it holds those of the other layout already.
    """
    if config.seeds and (folder / checkpoint.FOLDER).exists():
        raise UserError(
            f"{folder} holds a training of one seed, without config.seeds: choose another --workdir"
        )
    if not config.seeds and any(folder.glob(f"seed_*/{checkpoint.FOLDER}")):
        raise UserError(
            f"{folder} holds trainings of several seeds: set --config.seeds, or choose another "
            "--workdir"
        )
    if not config.seeds:
        return [(config, folder)]
    return [(with_seed(config, seed), folder / f"seed_{seed}") for seed in config.seeds]


def check_teacher(teacher: LoadedTeacher, saved: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError if the checkpoint in `folder` was trained with another teacher."""
    if teacher.sha256 != saved["teacher_sha256"]:
        raise UserError(
            f"the checkpoint in {folder} was trained with the teacher weights "
            f"{saved['teacher_weights']} (sha256 {saved['teacher_sha256'][:12]}...), not with "
            f"{teacher.weights} ({teacher.sha256[:12]}...): set teacher_weights"
        )


def check_same_training(
    config: Config, train_sha256: str, teacher: LoadedTeacher, folder: Path
) -> None:
    """Compares the config with all that one category's folder holds, of any seed.

    Raises UserError if going on would mix two trainings, or average over what differs in more
    than the seed.
    """
    for path in [folder, *sorted(folder.glob("seed_*"))]:
        saved = checkpoint.latest_metadata(path / checkpoint.FOLDER)
        if saved is None:
            continue
        check_teacher(teacher, saved, path)
        before, now = saved["config"], as_dict(config)
        if config.seeds:
            now["seed"] = before["seed"]
        differing = [k for k in now if k not in _FREE_FIELDS and now[k] != before.get(k)]
        changes = [f"{k} ({before.get(k)!r}, now {now[k]!r})" for k in differing]
        if changes:
            raise UserError(
                f"{path} was trained with another config: {', '.join(changes)}; choose another "
                "--workdir, or start anew with --restart"
            )
        if saved["train_sha256"] != train_sha256:
            raise UserError(
                f"{path} was trained with other training images than are there now; choose "
                "another --workdir, or start anew with --restart"
            )


def initial_state(
    config: Config, folder: Path, last_step: int
) -> tuple[TrainState, Mapping[str, float | None]]:
    """A new state, or that of the latest good checkpoint, with the time spent so far.

    The optimiser's state is read if there are steps left, before `last_step`, that need it.
    Damaged checkpoints are moved out of the way, into the folder `damaged`.
    """
    state = create_train_state(config, jax.random.key(config.seed))
    checkpoints = folder / checkpoint.FOLDER
    for step in checkpoint.steps(checkpoints):
        hosts.wait_for_all(f"restoring {step}")  # all have listed the same steps
        saved = error = None
        opt_state = state.opt_state
        try:
            saved = checkpoint.load(checkpoints, step)
            if step < last_step:
                opt_state = checkpoint.load_opt_state(checkpoints, step, jax.device_get(opt_state))
        except checkpoint.DamagedCheckpointError as caught:
            error = caught
        if not hosts.all_agree(error is None) or saved is None:
            if hosts.is_first():
                kept = moved_aside(checkpoints / str(step), folder / "damaged")
                logger.warning("%s; it is kept in %s", error or "another process failed", kept)
            continue
        variables = saved.student_variables
        state = TrainState(
            variables["params"], variables["batch_stats"], opt_state, state.step + step
        )
        return state, saved.metadata["timing"]
    return state, {"train_seconds": 0.0, "images_per_second": None}


def moved_aside(path: Path, folder: Path) -> Path:
    """Moves `path` into `folder` under a name that is free there, and returns that."""
    folder.mkdir(exist_ok=True)
    names = itertools.chain([path.name], (f"{path.name}.{i}" for i in itertools.count(1)))
    target = next(folder / name for name in names if not (folder / name).exists())
    return path.rename(target)
