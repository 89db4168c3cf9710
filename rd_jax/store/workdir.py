"""The folder of a run. Only this module knows what lies where in it.

WORKDIR/results.{json,csv,md}, report.html, figures/   the summary of all trainings
WORKDIR/CATEGORY/[seed_K/]                             a training and its evaluation
WORKDIR/CATEGORY/results.json                          with seeds: the summary over them
WORKDIR/all-categories/[seed_K/]                       one training for all categories, whose
                                                       evaluations lie where a category's do
WORKDIR/replaced-DATE/CATEGORY/                        what --restart moved aside
WORKDIR/.locks/                                        locks of processes that work here
"""

import itertools
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rd_jax.store import checkpoint
from rd_jax.system.errors import UserError
from rd_jax.system.files import check_writable, writing

JOINT = "all-categories"  # the name of a training for all categories, in the place of a category
_TAKEN = ("", "checkpoints", "figures", "report.html", JOINT)
_TAKEN_PREFIXES = (".", "results.", "replaced-")


def _inside(name: str) -> Any:
    """Return a property: the path of this name in an object's `folder`."""
    return property(lambda self: self.folder / name)


@dataclass(frozen=True)
class _Place:
    """A folder of a category, or of JOINT; `seed` is None without a folder seed_K."""

    workdir: Path
    name: str
    seed: int | None = None

    @property
    def folder(self) -> Path:
        """WORKDIR/NAME or WORKDIR/NAME/seed_K."""
        return self.workdir / self.name / ("" if self.seed is None else f"seed_{self.seed}")

    @property
    def label(self) -> str:
        """NAME or NAME-seed_K."""
        return self.name if self.seed is None else f"{self.name}-seed_{self.seed}"


class Evaluation(_Place):
    """The place of a training's evaluation on the category of this name."""

    results = _inside("results.json")  # facts and figures, written last
    shown = _inside("evaluation.npz")  # the scores and pictures that the page shows
    thresholds = _inside("thresholds.json")


class Training(_Place):
    """The place of a training. Its name is its category's, or JOINT."""

    checkpoints = _inside("checkpoints")
    metrics = _inside("metrics.jsonl")  # rows of the loss and, where asked for, of metrics
    tensorboard = _inside("tensorboard")  # event files
    damaged = _inside("damaged")  # checkpoints that were moved out of the way

    def evaluation(self, category: str) -> Evaluation:
        """Return the place of a category's evaluation. Raise UserError for an impossible name."""
        check_category(category)
        return Evaluation(self.workdir, category if self.name == JOINT else self.name, self.seed)


@dataclass(frozen=True)
class Workdir:
    """The folder of a run, with its trainings and the summary of all."""

    folder: Path

    results = _inside("results.json")  # all rows and their mean; .csv and .md stand beside it
    page = _inside("report.html")
    figures = _inside("figures")
    locks = _inside(".locks")  # beside the trainings, so that they can be moved while locked

    def training(self, name: str, seed: int | None = None) -> Training:
        """Return a training's place, which need not exist; raise UserError for a wrong name."""
        if name != JOINT:
            check_category(name)
        return Training(self.folder, name, seed)

    def trainings(self) -> list[Training]:
        """Return the trainings that have a checkpoints folder, by name; seeds in order."""
        places = itertools.chain(*map(self.places, (JOINT, *self._categories())))
        # Path.is_dir would raise in a folder that cannot be entered, such as lost+found.
        return [place for place in places if os.path.isdir(place.checkpoints)]

    def evaluations(self) -> list[Evaluation]:
        """Return the evaluations that have a results.json; numbered classes and seeds in order."""
        # With seeds, the category's own results.json is a summary.
        places = [seeds or [own] for own, *seeds in map(self.places, self._categories())]
        found = [place.evaluation(place.name) for place in itertools.chain(*places)]
        return [evaluation for evaluation in found if os.path.isfile(evaluation.results)]

    def places(self, name: str) -> list[Training]:
        """Return the places of a name: its own, which need not exist, then its seeds in order."""
        folders = (self.folder / name).glob("seed_*")
        seeds = sorted(seed for folder in folders if (seed := _seed_of(folder)) is not None)
        return [Training(self.folder, name, seed) for seed in (None, *seeds)]

    def check_is_outermost(self) -> None:
        """Raise UserError if this is the folder of a category inside the folder of a run."""
        own, *seeds = self.places("")
        outer, name = self.folder.absolute().parent, self.folder.absolute().name
        # Without a lock outside, seed_K may be the name of a category.
        inside = [own, *(seeds if os.path.isdir(Workdir(outer).locks / name) else ())]
        is_evaluated = os.path.isfile(Evaluation(self.folder, "").shown)
        if is_evaluated or any(os.path.isdir(place.checkpoints) for place in inside):
            raise UserError(
                f"--workdir {self.folder} is where a run keeps the category {name}: set --workdir "
                f"to the folder of that run, {outer}, or to another folder"
            )

    def make(self, places: Iterable[_Place]) -> None:
        """Make the workdir. Raise UserError if it or one of these places cannot be written to."""
        self.check_is_outermost()
        if "\\" in str(self.folder.absolute()):  # which Orbax takes for a separator
            raise UserError(f"--workdir {self.folder}: choose a path without a backslash")
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        folders = [self.folder, self.figures, self.locks]
        for place in places:
            folders += [place.folder.parent, place.folder]
            if isinstance(place, Training):
                checkpoint.steps(place.checkpoints)  # raises if they cannot be read
                folders += [place.checkpoints, place.tensorboard, place.damaged]
        for folder in filter(os.path.lexists, dict.fromkeys(folders)):
            check_writable(folder)

    def _categories(self) -> list[str]:
        """Return the names of folders that may be a category's; numbers come first, in order."""
        names = filter(_is_category, (path.name for path in self.folder.glob("*/")))
        return sorted(names, key=lambda name: (int(name) if name.isdecimal() else math.inf, name))


def find_training(folder: Path) -> tuple[Training, str | None]:
    """Return the one training at or below the folder of a run, a category or a seed.

    The second value is the category if the folder is a category's of a joint training.
    Raise UserError if there is no training with a checkpoint, or several.
    """
    whole = Path(os.path.abspath(folder))
    here = _training_at(whole)
    below = [_training_at(training.folder) for training in Workdir(whole).trainings()]
    category, found = None, [t for t in (here, *below) if checkpoint.steps(t.checkpoints)]
    if not found and _is_category(here.name):
        joint = [t for t in Workdir(here.workdir).places(JOINT) if here.seed in (None, t.seed)]
        category, found = here.name, [t for t in joint if checkpoint.steps(t.checkpoints)]
    if not found:
        raise UserError(f"no checkpoint in {folder}: set --workdir to the folder of a training")
    if len(found) > 1:
        places = [t.evaluation(category) if category else t for t in found]
        names = ", ".join(os.path.relpath(place.folder, whole) for place in places)
        raise UserError(f"{folder} holds several trainings: add one of {names} to --workdir")
    return found[0], category


def _training_at(folder: Path) -> Training:
    if (seed := _seed_of(folder)) is None:
        return Training(folder.parent, folder.name)
    return Training(folder.parent.parent, folder.parent.name, seed)


def _seed_of(folder: Path) -> int | None:
    match = re.fullmatch(r"seed_(\d+)", folder.name, re.ASCII)
    return int(match[1]) if match else None


def check_category(name: str) -> None:
    """Raise UserError for a category whose folder cannot be made, or has another use."""
    if not _is_category(name):
        raise UserError(
            f"category {name!r}: its folder cannot be made, or a run keeps other things under that "
            "name; rename the category"
        )


def _is_category(name: str) -> bool:
    is_free = name not in _TAKEN and not name.startswith(_TAKEN_PREFIXES)
    return is_free and not set(name) & set("/\\\0")  # Orbax takes a backslash for a separator


def moved_aside(path: Path, folder: Path) -> Path:
    """Move `path` into `folder` under a free name, and return the new path."""
    with writing(folder):
        folder.mkdir(exist_ok=True)
        names = itertools.chain([path.name], (f"{path.name}.{i}" for i in itertools.count(1)))
        return path.rename(next(folder / n for n in names if not os.path.lexists(folder / n)))
