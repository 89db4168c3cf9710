"""What was trained, for evaluation, prediction and export: found, read and checked."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from rd_jax.config import Config, from_dict
from rd_jax.method.calibration import Calibration
from rd_jax.method.models import Model
from rd_jax.run.build import model_of
from rd_jax.store import checkpoint
from rd_jax.store.checkpoint import Checkpoint
from rd_jax.store.workdir import Training, training_of, trainings_at
from rd_jax.system.errors import UserError
from rd_jax.system.files import as_on_disk
from rd_jax.weights.teacher import LoadedTeacher, teacher_of

logger = logging.getLogger(__name__)


class Trained(NamedTuple):
    """The latest checkpoint of a training, with the teacher that it was trained with."""

    config: Config
    checkpoint: Checkpoint
    teacher: LoadedTeacher
    calibration: Calibration | None  # None before the last step

    @property
    def model(self) -> Model:
        """The networks."""
        return model_of(self.config)


def config_of(metadata: Mapping[str, Any]) -> Config:
    """The config that the checkpoint was trained with; its teacher is the one that was used."""
    return from_dict(metadata["config"] | {"teacher_weights": metadata["teacher_weights"]})


def check_teacher(teacher: LoadedTeacher, saved: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError if the checkpoint in `folder` was trained with another teacher."""
    if teacher.sha256 != saved["teacher_sha256"]:
        raise UserError(
            f"the checkpoint in {folder} was trained with the teacher weights "
            f"{saved['teacher_weights']} (sha256 {saved['teacher_sha256'][:12]}...), not with "
            f"{teacher.weights} ({teacher.sha256[:12]}...): set teacher_weights"
        )


def find_training(workdir: Path) -> Training:
    """The one training in `workdir`, itself or a category's or seed's.

    Raises UserError if there is none, or several.
    """
    found = [t for t in trainings_at(workdir) if checkpoint.steps(t.checkpoints)]
    if not found:
        raise UserError(f"no checkpoint in {workdir}: set --workdir to the folder of a training")
    if len(found) > 1:
        names = ", ".join(str(training.folder.relative_to(workdir)) for training in found)
        raise UserError(f"{workdir} holds several trainings: add one of {names} to --workdir")
    return found[0]


def load_trained(workdir: str | Path, teacher_weights: str | None = None) -> Trained:
    """What the one training in this folder, of a run, a category or a seed, learnt.

    `teacher_weights`, as of `load_teacher`, says where the teacher's weights are by now, if not
    where they were. Raises UserError if there is no checkpoint or several trainings, or if the
    teacher is not the one trained with.
    """
    training = find_training(as_on_disk(Path(workdir)))
    loaded = checkpoint.load_latest(training.checkpoints)
    config = config_of(loaded.metadata)
    config.teacher_weights = teacher_weights or config.teacher_weights
    teacher = teacher_of(config)
    check_teacher(teacher, loaded.metadata, training.folder)
    calibration = loaded.metadata["calibration"]
    return Trained(config, loaded, teacher, calibration and Calibration(**calibration))


def restore(workdir: str | Path, category: str) -> tuple[Model, dict[str, Any], dict[str, Any]]:
    """Model, student's variables and what else the latest checkpoint knows.

    The variables {'params', 'batch_stats'} are float32 numpy arrays, ready for `make_scorer` of
    the model, on any number of devices. The rest is a dict: "config" (all fields, among them
    image_size, blur_sigma and teacher_weights), "calibration" (None before the last step),
    "last_step" and so on. Of several seeds, `category` names one: "bottle/seed_1". Raises UserError
    if `workdir` has no checkpoint of `category`, or a damaged one.
    """
    loaded = checkpoint.load_latest(training_of(Path(workdir), category).checkpoints)
    config = config_of(loaded.metadata)
    known = loaded.metadata | {"config": config.to_dict(), "step": loaded.step}
    return model_of(config), loaded.student_variables, known


def warn_of_other_dtype(trained: Trained, dtype: Any) -> None:
    """Says so if scores in `dtype` are compared with a threshold that another one's scores set."""
    then, now = trained.checkpoint.metadata["dtype"], jnp.dtype(dtype).name
    if now != then and trained.calibration and trained.calibration.image_threshold is not None:
        logger.warning(
            "the threshold was set with scores computed in %s, and these are computed in %s: "
            "verdicts of images close to it may differ",
            *(then, now),
        )
