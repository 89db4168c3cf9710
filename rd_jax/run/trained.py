"""What was trained, for prediction, export and research code: found, read and checked once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rd_jax.config import RATES, Config, as_dict, changed, from_dict
from rd_jax.method.models import Model
from rd_jax.method.score import Scoring
from rd_jax.method.thresholds import Thresholds, pooled, thresholds_of
from rd_jax.run.plan import model_of, scoring_of, size_of, teacher_of
from rd_jax.store import checkpoint
from rd_jax.store.checkpoint import Checkpoint
from rd_jax.store.thresholds import StoredThresholds, read_thresholds
from rd_jax.store.workdir import Training, find_training
from rd_jax.system.errors import UserError
from rd_jax.system.files import user_path
from rd_jax.weights.teacher import LoadedTeacher


@dataclass(frozen=True)
class Trained:
    """A student as it was last evaluated: with its thresholds and, once loaded, its teacher."""

    training: Training
    categories: tuple[str, ...]  # those that the thresholds are for
    config: Config  # of the training, with what the last evaluation changed
    checkpoint: Checkpoint
    thresholds: Thresholds | None  # None before the training is finished and evaluated
    teacher_variables: Any = None

    @property
    def model(self) -> Model:
        """The networks, in float32."""
        return model_of(self.config)

    @property
    def scoring(self) -> Scoring:
        """How distances become maps and scores."""
        return scoring_of(self.config)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of images in pixels."""
        return size_of(self.config)

    @property
    def resize(self) -> str:
        """How pictures get that size."""
        return self.config.resize

    @property
    def student_variables(self) -> dict[str, Any]:
        """The student's variables, numpy arrays."""
        return self.checkpoint.student_variables

    @property
    def step(self) -> int:
        """The step of the checkpoint."""
        return self.checkpoint.step

    @property
    def last_step(self) -> int:
        """The last step of the training."""
        return self.checkpoint.metadata["last_step"]

    @property
    def is_finished(self) -> bool:
        """Whether the student is that of the last step."""
        return self.step == self.last_step


def config_of(metadata: Mapping[str, Any]) -> Config:
    """Return the config of a checkpoint; its teacher is the one that was used."""
    return from_dict(metadata["config"] | {"teacher_weights": metadata["teacher_weights"]})


def check_teacher(teacher: LoadedTeacher, saved: Mapping[str, Any], folder: Path) -> None:
    """Raise UserError if the checkpoint in `folder` was trained with another teacher."""
    if teacher.sha256 != saved["teacher_sha256"]:
        raise UserError(
            f"the checkpoint in {folder} was trained with the teacher weights "
            f"{saved['teacher_weights']} (sha256 {saved['teacher_sha256'][:12]}...), not with "
            f"{teacher.weights} ({teacher.sha256[:12]}...): set teacher_weights"
        )


def load_trained(
    workdir: str | Path, teacher_weights: str | None = None, **rates: float
) -> Trained:
    """Load the one training in the folder of a run, a category or a seed.

    For a training for all categories, the folder of a category gives its thresholds, other folders
    give thresholds for all of them. `teacher_weights`, as of `load_teacher`, says where the
    teacher's weights are by now, if not where they were. `rates` are false_positive_rate and
    pixel_false_positive_rate; what else says how to score is as in the last evaluation. Raise
    UserError if there is no checkpoint, or several trainings, if the teacher is not the one
    trained with, or for a rate that is not allowed.
    """
    for name in rates:
        if name not in RATES:
            raise UserError(
                f"{name}: prediction and export can change {' and '.join(RATES)}; change others "
                "with python -m rd_jax.main --mode eval"
            )
    student = _found(user_path(workdir), rates)
    where = {"teacher_weights": teacher_weights} if teacher_weights else {}
    config = changed(student.config, where)
    teacher = teacher_of(config)
    check_teacher(teacher, student.checkpoint.metadata, student.training.folder)
    return replace(student, config=config, teacher_variables=teacher.variables)


def restore(workdir: str | Path, category: str) -> tuple[Model, dict[str, Any], dict[str, Any]]:
    """Return model, student's variables and what else the latest checkpoint knows.

    The variables {'params', 'batch_stats'} are float32 numpy arrays, ready for `make_scorer` of
    the model, on any number of devices. The rest is a dict: "config" (all fields, among them
    image_size, blur_sigma and teacher_weights), "thresholds" (None before the training is
    evaluated), "step", "last_step" and so on. With several seeds, `category` names one:
    "bottle/seed_1"; with one training for all categories, "all-categories" has thresholds for
    all. Raise UserError if `workdir` has no checkpoint of `category`, or a damaged one.
    """
    student = _found(user_path(workdir) / category, {})
    known = {
        "config": as_dict(student.config),
        "step": student.step,
        "thresholds": student.thresholds and student.thresholds._asdict(),
    }
    return student.model, student.student_variables, student.checkpoint.metadata | known


def _found(folder: Path, rates: Mapping[str, float]) -> Trained:
    """Find and read the one training in this folder, without its teacher."""
    training, category = find_training(folder)
    loaded = checkpoint.load_latest(training.checkpoints)
    names = tuple(loaded.metadata["train_sha256"])
    if category and category not in names:
        raise UserError(
            f"{training.folder} was trained on {', '.join(names)}, not on {category}: set "
            "--workdir to the folder of one of them, or of all"
        )
    categories = (category,) if category else names
    stored = _stored(training, categories, loaded)
    scored_with = stored[0].config if stored else {}
    known = {**as_dict(config_of(loaded.metadata)), **scored_with, **rates}
    config = changed(from_dict(known), {})
    return Trained(training, categories, config, loaded, _thresholds(stored, rates))


def _stored(
    training: Training, categories: tuple[str, ...], loaded: Checkpoint
) -> list[StoredThresholds]:
    """Return what was scored for each category, or nothing if one was not evaluated."""
    places = [training.evaluation(category).thresholds for category in categories]
    found = [read_thresholds(place, loaded.checksum) for place in places]
    stored = [each for each in found if each is not None]
    if len(stored) < len(found):
        return []
    if any(each.config != stored[0].config for each in stored):
        raise UserError(
            f"the categories of {training.folder} were evaluated differently: set --workdir to "
            "the folder of one of them, or evaluate all alike with --mode eval"
        )
    return stored


def _thresholds(stored: list[StoredThresholds], rates: Mapping[str, float]) -> Thresholds | None:
    """Return what is kept, or thresholds of other rates, or those for all categories."""
    if len(stored) == 1 and not rates:
        return stored[0].thresholds
    normal = [each.normal for each in stored]
    kept = {name: stored[0].config[name] for name in RATES} if stored else {}
    return thresholds_of(pooled(normal), **{**kept, **rates}) if stored else None
