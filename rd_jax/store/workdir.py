"""The folder of a run: the one place that knows what lies where in it.

WORKDIR/results.{json,csv,md}, report.html, figures/   the summary of all trainings
WORKDIR/CATEGORY/[seed_K/]                             a training and its evaluation
WORKDIR/CATEGORY/results.json                          with seeds: the summary over them
WORKDIR/all-categories/[seed_K/]                       one training for all categories, whose
                                                       evaluations lie where a category's do
WORKDIR/replaced-DATE/CATEGORY/                        what --restart moved aside
WORKDIR/.locks/                                        who works on what
"""

import itertools
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rd_jax.store import checkpoint
from rd_jax.system.errors import UserError
from rd_jax.system.files import check_writable, writing

JOINT = "all-categories"  # the name of a training for all categories, in the place of a category
_TAKEN = ("checkpoints", "figures", "report.html", JOINT)
_TAKEN_PREFIXES = (".", "results.", "replaced-")


class _Inside:
    """The path of this name in an object's `folder`."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, owner: Any, _: Any = None) -> Path:
        return owner.folder / self.name


@dataclass(frozen=True)
class _Place:
    """A folder that belongs to a category, or to JOINT; `seed` is None without a folder seed_K."""

    folder: Path
    name: str
    seed: int | None = None

    @property
    def label(self) -> str:
        """NAME or NAME-seed_K."""
        return self.name if self.seed is None else f"{self.name}-seed_{self.seed}"


@dataclass(frozen=True)
class Evaluation(_Place):
    """Where the evaluation of a training on one category is kept."""

    results = _Inside("results.json")  # facts and figures, written last
    shown = _Inside("evaluation.npz")  # the scores and pictures that the page shows
    thresholds = _Inside("thresholds.json")

    @property
    def category(self) -> str:
        """The category whose test images were scored."""
        return self.name


@dataclass(frozen=True)
class Training(_Place):
    """Where a training is kept. Its name is its category's, or JOINT."""

    checkpoints = _Inside("checkpoints")
    metrics = _Inside("metrics.jsonl")  # rows of the loss and, where asked for, of metrics
    tensorboard = _Inside("tensorboard")  # event files
    damaged = _Inside("damaged")  # checkpoints that were moved out of the way

    def evaluation(self, category: str) -> Evaluation:
        """Return the place of a category's evaluation. Raise UserError for an impossible name."""
        check_category(category)
        if self.name != JOINT:
            return Evaluation(self.folder, category, self.seed)
        workdir = self.folder.parent if self.seed is None else self.folder.parent.parent
        return Evaluation(_folder(workdir, category, self.seed), category, self.seed)


@dataclass(frozen=True)
class Workdir:
    """Where the summary of all trainings of a run is kept, and the trainings themselves."""

    folder: Path

    results = _Inside("results.json")  # all rows and their mean; .csv and .md stand beside it
    page = _Inside("report.html")
    figures = _Inside("figures")
    locks = _Inside(".locks")  # beside the trainings, so that they can be moved while locked

    def figure(self, evaluation: Evaluation) -> Path:
        """Return the path that the names of an evaluation's figures begin with."""
        return self.figures / evaluation.label

    def over_seeds(self, category: str) -> Path:
        """Return the path of a category's summary over its seeds."""
        return self.folder / category / "results.json"

    def lock(self, training: Training) -> Path:
        """Return the path of the file that is locked by whoever works on a training."""
        return self.locks / training.name / f"{training.seed}.lock"

    def training(self, name: str, seed: int | None = None) -> Training:
        """Return the place of a training, there or not. Raise UserError for an impossible name."""
        if name != JOINT:
            check_category(name)
        return Training(_folder(self.folder, name, seed), name, seed)

    def trainings(self) -> list[Training]:
        """Return the trainings that have a checkpoints folder, by name; seeds in order."""
        places = itertools.chain.from_iterable(map(self._places, (JOINT, *self._categories())))
        # Path.is_dir would raise in a folder that cannot be entered, such as lost+found.
        return [t for t in itertools.starmap(Training, places) if os.path.isdir(t.checkpoints)]

    def evaluations(self) -> list[Evaluation]:
        """Return the evaluations that have a results.json; numbered classes and seeds in order."""
        places = itertools.chain.from_iterable(
            # With seeds, the category's own results.json is a summary.
            seeds or [own]
            for own, *seeds in map(self._places, self._categories())
        )
        return [e for e in itertools.starmap(Evaluation, places) if os.path.isfile(e.results)]

    def make(self, places: Iterable[Training | Evaluation]) -> None:
        """Make the workdir. Raise UserError if it or one of these places cannot be written to."""
        if "\\" in str(self.folder.absolute()):  # which Orbax takes for a separator
            raise UserError(f"--workdir {self.folder}: choose a path without a backslash")
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        folders = [self.folder, self.figures, self.locks]
        for place in places:
            folders += [place.folder.parent, place.folder]
            if isinstance(place, Training):
                checkpoint.steps(place.checkpoints)  # which says if they cannot be read
                folders += [place.checkpoints, place.tensorboard, place.damaged]
        for folder in filter(os.path.lexists, dict.fromkeys(folders)):
            check_writable(folder)

    def _categories(self) -> list[str]:
        """Return the names of folders that may be a category's; numbers come first, in order."""
        names = [path.name for path in self.folder.glob("*/") if _problem_with(path.name) is None]
        return sorted(names, key=lambda name: (int(name) if name.isdecimal() else math.inf, name))

    def _places(self, name: str) -> list[tuple[Path, str, int | None]]:
        """Return the places of a name: its own, then those of its seeds in order."""
        folders = (self.folder / name).glob("seed_*")
        seeds = sorted(seed for folder in folders if (seed := _seed_of(folder)) is not None)
        return [(_folder(self.folder, name, seed), name, seed) for seed in (None, *seeds)]


def find_training(folder: Path) -> tuple[Training, str | None]:
    """Return the one training at or below the folder of a run, a category or a seed.

    The second value is the category if the folder belongs to one of a training for all categories.
    Raise UserError if there is no training with a checkpoint, or several.
    """
    whole = Path(os.path.abspath(folder))
    own, joint = (
        [(t, category) for t, category in candidates if checkpoint.steps(t.checkpoints)]
        for candidates in (_own_trainings(whole), _joint_trainings(whole))
    )
    found = own or joint
    if not found:
        raise UserError(f"no checkpoint in {folder}: set --workdir to the folder of a training")
    if len(found) > 1:
        places = [t.evaluation(category) if category else t for t, category in found]
        names = ", ".join(os.path.relpath(place.folder, whole) for place in places)
        raise UserError(f"{folder} holds several trainings: add one of {names} to --workdir")
    return found[0]


def _own_trainings(whole: Path) -> list[tuple[Training, str | None]]:
    """Return the trainings in a folder that is a training's, a category's or a run's."""
    folders = (whole, *(training.folder for training in Workdir(whole).trainings()))
    return [
        (Training(folder, folder.name if seed is None else folder.parent.name, seed), None)
        for folder, seed in zip(folders, map(_seed_of, folders), strict=True)
    ]


def _joint_trainings(whole: Path) -> list[tuple[Training, str | None]]:
    """Return the trainings for all categories whose evaluation of one lies in, or is, a folder."""
    places = ((whole.parent, whole.name), (whole.parent.parent, whole.parent.name))
    return [
        (joint, category)
        for workdir, category in places
        if _problem_with(category) is None
        for joint in itertools.starmap(Training, Workdir(workdir)._places(JOINT))
        if whole in ((own := joint.evaluation(category).folder), *own.parents)
    ]


def check_category(name: str) -> None:
    """Raise UserError for a category whose folder cannot be made or means something else."""
    if problem := _problem_with(name):
        raise UserError(f"category {name!r}: {problem}; rename the category")


def _problem_with(name: str) -> str | None:
    if name in _TAKEN or name.startswith(_TAKEN_PREFIXES):
        return "a run keeps other things under this name"
    # Orbax takes a backslash for a separator.
    return "it cannot be a folder's name" if not name or set(name) & set("/\\\0") else None


def set_aside(workdir: Path, names: Iterable[str]) -> dict[str, Path]:
    """Move the folders of these trainings and categories into one replaced-DATE; return where to.

    Raise UserError for a name that is no category's, before anything is moved.
    """
    kept = workdir / f"replaced-{datetime.now():%Y%m%d-%H%M%S}"
    folders = {name: Workdir(workdir).training(name).folder for name in names}
    there = {name: folder for name, folder in folders.items() if os.path.lexists(folder)}
    return {name: moved_aside(folder, kept) for name, folder in there.items()}


def moved_aside(path: Path, folder: Path) -> Path:
    """Move `path` into `folder` under a name that is free there, and return that."""
    with writing(folder):
        folder.mkdir(exist_ok=True)
        names = itertools.chain([path.name], (f"{path.name}.{i}" for i in itertools.count(1)))
        return path.rename(next(folder / n for n in names if not os.path.lexists(folder / n)))


def _folder(workdir: Path, name: str, seed: int | None) -> Path:
    return workdir / name / ("" if seed is None else f"seed_{seed}")


def _seed_of(folder: Path) -> int | None:
    match = re.fullmatch(r"seed_(\d+)", folder.name, re.ASCII)
    return int(match[1]) if match else None
