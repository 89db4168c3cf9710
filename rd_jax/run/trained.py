"""What was trained, for evaluation, prediction and export: found, read and checked."""

import argparse
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rd_jax.config import FIELDS, Config, Depends, from_dict, override
from rd_jax.method.calibration import Calibration
from rd_jax.method.models import Model
from rd_jax.run.build import compute_dtype, model_of
from rd_jax.run.thresholds import calibration_of, common_dtypes, kept_distances, pooled
from rd_jax.store import checkpoint
from rd_jax.store.checkpoint import Checkpoint
from rd_jax.store.distances import NormalDistances
from rd_jax.store.workdir import JOINT, Training, part_of, trainings_at
from rd_jax.system.errors import UserError
from rd_jax.system.files import as_on_disk, composed, user_path
from rd_jax.weights.teacher import LoadedTeacher, teacher_of

logger = logging.getLogger(__name__)


# What can be changed after training, in evaluation, prediction and export.
APPLIED = [name for name, field in FIELDS.items() if field.depends & Depends.APPLIED]


class Trained(NamedTuple):
    """The latest checkpoint of a training, with the teacher that it was trained with."""

    config: Config
    training: Training
    checkpoint: Checkpoint
    teacher: LoadedTeacher
    kept: dict[Training, NormalDistances]  # of each category that a threshold is for

    @property
    def categories(self) -> tuple[str, ...]:
        """Which ones a threshold is for, of a training for all categories."""
        return tuple(t.category for t in self.kept) if self.config.joint else ()

    @property
    def is_finished(self) -> bool:
        """Whether this is the last step's."""
        return self.checkpoint.step == self.checkpoint.metadata["last_step"]

    def calibration(self, dtype: str) -> Calibration:
        """Thresholds of scores in `dtype`. Raises UserError if nothing was scored for them."""
        folder, step = self.training.folder, self.checkpoint.step
        if not self.is_finished:
            raise UserError(
                f"{folder} has no thresholds, after step {step} of "
                f"{self.checkpoint.metadata['last_step']}: finish the training with the command "
                "that began it"
            )
        for training, distances in self.kept.items():
            if dtype not in distances.by_dtype:
                raise UserError(
                    f"{training.folder} has no scores of normal images, which thresholds come "
                    "from: let python -m rd_jax.main --mode eval score them"
                )
        return calibration_of(self.config, pooled(list(self.kept.values())), dtype)

    def scoring_dtype(self) -> str:
        """The config's, if there are thresholds for it, else float32, whose hold everywhere."""
        own = compute_dtype(self.config).name
        dtypes = common_dtypes(list(self.kept.values()))
        if dtypes and own not in dtypes:
            logger.warning(
                "scoring in float32, since there are no thresholds for %s: python -m rd_jax.main "
                "--mode eval makes them on this device",
                own,
            )
            return "float32"
        return own


def add_applied(parser: argparse.ArgumentParser, names: Iterable[str] = APPLIED) -> None:
    """Flags of the same names."""
    for name in names:
        field = FIELDS[name]
        parser.add_argument(f"--{name}", type=type(field.default), help=field.help)


def applied(flags: argparse.Namespace) -> dict[str, Any]:
    """Those that were given, for `load_trained`."""
    return {name: x for name in APPLIED if (x := getattr(flags, name, None)) is not None}


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


def hashes_of(metadata: Mapping[str, Any], category: str) -> dict[str, str]:
    """The SHA-256 of the training images of each category that the checkpoint was trained on."""
    saved = metadata.get("train_sha256", "")
    return dict(saved) if isinstance(saved, Mapping) else {category: saved}


def parts_of(training: Training, metadata: Mapping[str, Any]) -> list[Training]:
    """Where what is a category's own is kept: of a training for all, of each of them."""
    if training.category != JOINT:
        return [training]
    return [part_of(training, name) for name in hashes_of(metadata, JOINT)]


def find_training(workdir: Path) -> Training:
    """The one training in `workdir`, itself or a category's or seed's; one for all categories.

    Raises UserError if there is none, or several.
    """
    found = [t for t in trainings_at(workdir) if checkpoint.steps(t.checkpoints)]
    if not found:
        raise UserError(f"no checkpoint in {workdir}: set --workdir to the folder of a training")
    if len(found) > 1:
        names = ", ".join(os.path.relpath(training.folder, workdir) for training in found)
        raise UserError(f"{workdir} holds several trainings: add one of {names} to --workdir")
    return found[0]


def load_trained(
    workdir: str | Path, teacher_weights: str | None = None, **changes: Any
) -> Trained:
    """What the one training in this folder, of a run, a category or a seed, learnt.

    Of one for all categories, the folder of one gives its thresholds, others one for all of them.
    `teacher_weights`, as of `load_teacher`, says where the teacher's weights are by now, if not
    where they were; `changes` are of the config's fields in APPLIED. Raises UserError if there is
    no checkpoint or several trainings, if the teacher is not the one trained with, or for a change
    that is not allowed.
    """
    training, loaded = _load_latest(user_path(workdir))
    config = config_of(loaded.metadata)
    config.teacher_weights = teacher_weights or config.teacher_weights
    for name in changes:
        if name not in APPLIED:
            raise UserError(f"{name}: after training only {', '.join(APPLIED)} can be changed")
    override(config, changes)
    teacher = teacher_of(config)
    check_teacher(teacher, loaded.metadata, training.folder)
    return Trained(config, training, loaded, teacher, _kept(config, training, loaded))


def _load_latest(folder: Path) -> tuple[Training, Checkpoint]:
    """The one training in this folder, and its latest checkpoint."""
    training = find_training(folder)
    loaded = checkpoint.load_latest(training.checkpoints)
    names, own = hashes_of(loaded.metadata, JOINT), composed(training.category)
    if training.trained_in and own != JOINT and own not in names:
        raise UserError(
            f"{training.trained_in} was trained on {', '.join(names)}, not on {own}: set --workdir "
            "to the folder of one of them, or of all"
        )
    return training, loaded


def _kept(
    config: Config, training: Training, loaded: Checkpoint
) -> dict[Training, NormalDistances]:
    parts = parts_of(training, loaded.metadata)
    return {part: kept_distances(config, loaded, part) for part in parts}


def restore(workdir: str | Path, category: str) -> tuple[Model, dict[str, Any], dict[str, Any]]:
    """Model, student's variables and what else the latest checkpoint knows.

    The variables {'params', 'batch_stats'} are float32 numpy arrays, ready for `make_scorer` of
    the model, on any number of devices. The rest is a dict: "config" (all fields, among them
    image_size, blur_sigma and teacher_weights), "calibration" (of float32; None before the
    training is evaluated), "last_step" and so on. Of several seeds, `category` names one:
    "bottle/seed_1"; of one training for all categories, "all-categories" has one calibration for
    all. Raises UserError if `workdir` has no checkpoint of `category`, or a damaged
    one.
    """
    training, loaded = _load_latest(as_on_disk(user_path(workdir) / category))
    config, calibration = config_of(loaded.metadata), None
    distances = pooled(list(_kept(config, training, loaded).values()))
    if "float32" in distances.by_dtype:
        calibration = calibration_of(config, distances, "float32")._asdict()
    known = {"config": config.to_dict(), "step": loaded.step, "calibration": calibration}
    return model_of(config), loaded.student_variables, loaded.metadata | known
