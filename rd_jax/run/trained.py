"""Load a trained student, once and checked, for evaluation, prediction, export and research."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rd_jax.config import RATES, Config, as_dict, changed, from_dict, validate
from rd_jax.data import Split
from rd_jax.method.models import Model
from rd_jax.method.score import Scoring, make_scorer
from rd_jax.method.thresholds import Thresholds, pooled, thresholds_of
from rd_jax.run.plan import compute_dtype, model_of, scoring_of, size_of, teacher_of
from rd_jax.run.scoring import Score, bound
from rd_jax.store import checkpoint
from rd_jax.store.checkpoint import Checkpoint
from rd_jax.store.thresholds import read_thresholds
from rd_jax.store.workdir import Training, find_training
from rd_jax.system.errors import UserError
from rd_jax.system.files import user_path
from rd_jax.weights.teacher import LoadedTeacher


@dataclass(frozen=True)
class Trained:
    """A trained student with its config, teacher and thresholds: read once, then passed on."""

    training: Training
    config: Config  # of the training, with the changes of the last evaluation
    checkpoint: Checkpoint
    teacher: LoadedTeacher
    categories: tuple[str, ...] = ()  # the categories that the thresholds are for
    thresholds: Thresholds | None = None  # None before the training is finished and evaluated

    @property
    def model(self) -> Model:
        """Return the networks, in float32."""
        return model_of(self.config)

    @property
    def scoring(self) -> Scoring:
        """Return the settings by which distances become maps and scores."""
        return scoring_of(self.config)

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of images in pixels."""
        return size_of(self.config)

    @property
    def score(self) -> Score:
        """Return the function from images to maps and scores."""
        return bound_scorer(self.config, self.teacher, self.checkpoint.student_variables)


def facts_of(
    config: Config, teacher: LoadedTeacher, splits: Sequence[Split], last_step: int
) -> dict[str, Any]:
    """Return the facts that a checkpoint keeps about its training, without step and time."""
    return {
        "config": as_dict(config),
        "teacher_weights": teacher.weights,
        "teacher_sha256": teacher.sha256,
        "train_sha256": {split.name: split.train_sha256 for split in splits},
        "train_hashes": {split.name: list(split.train_hashes) for split in splits},
        "last_step": last_step,
        "dtype": compute_dtype(config).name,
    }


_scorer = cache(make_scorer)  # trainings that score alike compile once


def bound_scorer(config: Config, teacher: LoadedTeacher, student_variables: Any) -> Score:
    """Return the function from images to maps and scores."""
    how = scoring_of(config)
    scorer = _scorer(model_of(config), how.sigma, how.reduction, how.fusion)
    return bound(scorer, teacher.variables, student_variables)


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

    For a joint training, the folder of a category gives its thresholds; other folders give
    thresholds for all categories. `teacher_weights` says where the teacher's weights are now, if
    they have moved: see `load_teacher`. `rates` are false_positive_rate and
    pixel_false_positive_rate; other settings of scoring are those of the last evaluation. Raise
    UserError if there is no checkpoint, or several trainings, if the teacher is not the one
    trained with, or for a rate that is not allowed.
    """
    for name in rates:
        if name not in RATES:
            raise UserError(
                f"{name}: prediction and export can change {' and '.join(RATES)}; change others "
                "with python -m rd_jax.main --mode eval"
            )
    training, loaded, categories = _found(user_path(workdir))
    config, thresholds = _as_evaluated(training, loaded, categories, rates)
    config = changed(config, {"teacher_weights": teacher_weights or config.teacher_weights})
    teacher = teacher_of(config)
    check_teacher(teacher, loaded.metadata, training.folder)
    return Trained(training, config, loaded, teacher, categories, thresholds)


def restore(workdir: str | Path, category: str) -> tuple[Model, dict[str, Any], dict[str, Any]]:
    """Return the model, the student's variables and the metadata of the latest checkpoint.

    The variables {'params', 'batch_stats'} are float32 numpy arrays, ready for `make_scorer` of
    the model, on any number of devices. The metadata are a dict: "config" (all fields, among them
    image_size, blur_sigma and teacher_weights), "thresholds" (None before the training is
    evaluated), "step", "last_step" and so on. With several seeds, `category` names one:
    "bottle/seed_1". For a joint training, "all-categories" has thresholds for all. Raise UserError
    if `workdir` has no checkpoint of `category`, or a damaged one.
    """
    training, loaded, categories = _found(user_path(workdir) / category)
    config, thresholds = _as_evaluated(training, loaded, categories, {})
    known = {
        "config": as_dict(config),
        "step": loaded.step,
        "thresholds": thresholds and thresholds._asdict(),
    }
    return model_of(config), loaded.student_variables, loaded.metadata | known


def _found(folder: Path) -> tuple[Training, Checkpoint, tuple[str, ...]]:
    """Find the training in this folder; return it, its checkpoint and the chosen categories."""
    training, category = find_training(folder)
    loaded = checkpoint.load_latest(training.checkpoints)
    names = tuple(loaded.metadata["train_sha256"])
    if category and category not in names:
        raise UserError(
            f"{training.folder} was trained on {', '.join(names)}, not on {category}: set "
            "--workdir to the folder of one of them, or of all"
        )
    return training, loaded, (category,) if category else names


def _as_evaluated(
    training: Training,
    loaded: Checkpoint,
    categories: tuple[str, ...],
    rates: Mapping[str, float],
) -> tuple[Config, Thresholds | None]:
    """Return the config, changed by the last evaluation and `rates`, and the thresholds.

    The thresholds are None if one of the categories was not evaluated.
    """
    places = [training.evaluation(category).thresholds for category in categories]
    found = [read_thresholds(place, loaded.checksum) for place in places]
    stored = [each for each in found if each is not None]
    is_evaluated = len(stored) == len(found)
    if is_evaluated and any(each.config != stored[0].config for each in stored):
        raise UserError(
            f"the categories of {training.folder} were evaluated differently: set --workdir to "
            "the folder of one of them, or evaluate all alike with --mode eval"
        )
    scored_with = {**(stored[0].config if is_evaluated else {}), **rates}
    config = from_dict(loaded.metadata["config"] | scored_with)
    validate(config)
    if not is_evaluated:
        return config, None
    if len(stored) == 1 and not rates:
        return config, stored[0].thresholds
    normal = pooled([each.normal for each in stored])
    return config, thresholds_of(normal, **{name: scored_with[name] for name in RATES})
