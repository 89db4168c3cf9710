"""What was trained, for prediction and export: found, read and checked."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from rd_jax import checkpoint
from rd_jax.calibration import Calibration
from rd_jax.checkpoint import Checkpoint
from rd_jax.config import Config
from rd_jax.errors import UserError
from rd_jax.resume import check_teacher
from rd_jax.weights import LoadedTeacher, teacher_of

logger = logging.getLogger(__name__)


class Trained(NamedTuple):
    """The latest checkpoint of a training, with the teacher that it was trained with."""

    config: Config
    checkpoint: Checkpoint
    teacher: LoadedTeacher
    calibration: Calibration | None  # None before the last step


def find_training(workdir: Path) -> Path:
    """The folder of the one training in `workdir`, itself or a category's or seed's.

    Raises UserError if there is none, or several.
    """
    if (workdir / checkpoint.FOLDER).is_dir():
        return workdir
    found = checkpoint.trained_folders(workdir)
    if not found:
        raise UserError(f"no checkpoint in {workdir}: set --workdir to the folder of a training")
    if len(found) > 1:
        names = ", ".join(str(folder.relative_to(workdir)) for folder in found)
        raise UserError(f"{workdir} holds several trainings: add one of {names} to --workdir")
    return found[0]


def load_trained(training: Path, teacher_weights: str | None = None) -> Trained:
    """What the training in this folder learnt.

    `teacher_weights`, as of `load_teacher`, says where the teacher's weights are by now, if not
    where they were. Raises UserError if there is no checkpoint, or if the teacher is not the one
    trained with.
    """
    loaded = checkpoint.load_trained(training)
    config = checkpoint.config_of(loaded.metadata)
    config.teacher_weights = teacher_weights or config.teacher_weights
    teacher = teacher_of(config)
    check_teacher(teacher, loaded.metadata, training)
    calibration = loaded.metadata["calibration"]
    return Trained(config, loaded, teacher, calibration and Calibration(**calibration))


def warn_of_other_dtype(trained: Trained, dtype: Any) -> None:
    """Says so if scores in `dtype` are compared with a threshold that another one's scores set."""
    then, now = trained.checkpoint.metadata["dtype"], jnp.dtype(dtype).name
    if now != then and trained.calibration and trained.calibration.image_threshold is not None:
        logger.warning(
            "the threshold was set with scores computed in %s, and these are computed in %s: "
            "verdicts of images close to it may differ",
            *(then, now),
        )
