"""The folder of a run: the one place that knows what lies where in it.

WORKDIR/results.{json,csv,md}, report.html, figures/     of all trainings
WORKDIR/CATEGORY/                                        a training, or with several seeds
WORKDIR/CATEGORY/seed_K/                                 a training for each, and their results.json
WORKDIR/all-categories/, or seed_K/ in it                one training for all categories
WORKDIR/replaced-DATE/CATEGORY/                          what --restart moved aside
WORKDIR/.locks/                                          which of them a process works on

A training has checkpoints/, results.json, metrics.jsonl, evaluation.npz, distances.npz and, where
they are asked for or needed, tensorboard/ and damaged/. Of one for all categories, what comes of
evaluating a category lies where it always does, results.json, evaluation.npz and distances.npz in
WORKDIR/CATEGORY[/seed_K]; the rest is in all-categories.
"""

import itertools
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rd_jax.system.errors import UserError
from rd_jax.system.files import as_on_disk

JOINT = "all-categories"  # in the place of a category: what one training for all of them leaves


class _Inside:
    """The path of this name in an object's `folder`."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, owner: Any, _: Any = None) -> Path:
        return owner.folder / self.name


class _OfTraining(_Inside):
    """Of this name where the training itself lies."""

    def __get__(self, owner: Any, _: Any = None) -> Path:
        return (owner.trained_in or owner.folder) / self.name


@dataclass(frozen=True)
class Training:
    """Where one training of a category is kept; `seed` is None where it has no folder seed_K.

    One for all categories is kept in `trained_in`, and here what is the category's own.
    """

    folder: Path
    category: str
    seed: int | None = None
    trained_in: Path | None = field(default=None, compare=False)

    checkpoints = _OfTraining("checkpoints")
    results = _Inside("results.json")  # facts and figures, written last
    metrics = _OfTraining("metrics.jsonl")  # rows of the loss and, where asked for, of metrics
    evaluation = _Inside("evaluation.npz")  # what the report shows
    distances = _Inside("distances.npz")  # of normal images: what thresholds come from
    tensorboard = _OfTraining("tensorboard")  # event files
    damaged = _OfTraining("damaged")  # checkpoints that were moved out of the way

    @property
    def name(self) -> str:
        """CATEGORY or CATEGORY-seed_K."""
        return self.category if self.seed is None else f"{self.category}-seed_{self.seed}"


@dataclass(frozen=True)
class Workdir:
    """Where what is said of all trainings of a run is kept."""

    folder: Path

    results = _Inside("results.json")  # all rows and their mean; .csv and .md stand beside it
    page = _Inside("report.html")
    figures = _Inside("figures")
    locks = _Inside(".locks")  # beside the trainings, so that they can be moved while locked

    def figure(self, training: Training) -> Path:
        """What the names of a training's figures begin with."""
        return self.figures / training.name

    def lock(self, training: Training) -> Path:
        """The file that is locked by whoever works on a training."""
        return self.locks / training.category / f"{training.folder.name}.lock"

    def begun(self, category: str) -> list[Training]:
        """The training of a category, and those of seeds that anyone has ever locked."""
        locks = (self.locks / category).glob("seed_*.lock")
        seeds = (path.stem.removeprefix("seed_") for path in locks)
        numbers = (None, *map(int, filter(str.isdecimal, seeds)))
        return [training_of(self.folder, category, number) for number in numbers]

    def written_to(self, trainings: Iterable[Training]) -> list[Path]:
        """The folders that are there in which something is made or replaced."""
        folders = [self.folder, self.figures, self.locks]
        for training in trainings:
            folders += [training.folder.parent, training.folder, training.checkpoints]
            folders += [training.tensorboard, training.damaged]
        return [folder for folder in dict.fromkeys(folders) if os.path.lexists(folder)]


def category_results(training: Training) -> Path:
    """Facts and mean figures over the seeds of a training's category."""
    return Workdir(training.folder.parent).results


def check_category(name: str) -> None:
    """Raises UserError if a category's folder could not be told from what else is in a workdir."""
    taken = ("checkpoints", "figures", "report.html", JOINT)
    if name in taken or name.startswith(("results.", "replaced-")):
        raise UserError(
            f"category {name!r}: a run keeps other things under this name; rename the category"
        )


def training_of(workdir: Path, category: str, seed: int | None = None) -> Training:
    """The training of a category, or of one of its seeds, there or not.

    Where it has no checkpoints of its own but there is one for all categories, that one's.
    """
    own, joint = (_training(workdir, name, seed) for name in (category, JOINT))
    is_part = category != JOINT and os.path.isdir(joint.checkpoints)
    return part_of(joint, category) if is_part and not os.path.isdir(own.checkpoints) else own


def _training(workdir: Path, category: str, seed: int | None) -> Training:
    folder = as_on_disk(workdir / category)
    return Training(folder if seed is None else folder / f"seed_{seed}", category, seed)


def part_of(joint: Training, category: str) -> Training:
    """Where what is a category's own of a training for all of them is kept."""
    workdir = joint.folder.parent if joint.seed is None else joint.folder.parent.parent
    return replace(_training(workdir, category, joint.seed), trained_in=joint.folder)


def trainings_of(workdir: Path, category: str) -> list[Training]:
    """The trainings of a category that are there, seeds in order."""
    folder = as_on_disk(workdir / category)
    numbers = (p.name.removeprefix("seed_") for p in folder.glob("seed_*"))
    seeds = sorted(int(number) for number in numbers if number.isdecimal())
    return [
        training
        for training in (training_of(workdir, category, seed) for seed in (None, *seeds))
        # Over several seeds, results.json of the category is a summary. Of what cannot be entered,
        # such as lost+found, Path.is_dir would raise.
        if (os.path.isdir(training.checkpoints) and training.trained_in is None)
        or (os.path.isfile(training.results) and not (seeds and training.seed is None))
    ]


def find_trainings(workdir: Path) -> list[Training]:
    """All trainings that are there, finished or not; numbered classes in order.

    Of one for all categories, those categories that were evaluated.
    """
    names = sorted(
        (path.name for path in workdir.glob("*/") if path.name != JOINT),
        key=lambda name: (int(name) if name.isdecimal() else math.inf, name),
    )
    return [training for name in names for training in trainings_of(workdir, name)]


def trainings_at(folder: Path) -> list[Training]:
    """The training that this folder is, or those of the run or category that it is.

    Of one for all categories: it, or the category that this folder is, evaluated or not.
    """
    here, whole = Training(folder, folder.name), Path(os.path.abspath(folder))
    own = [here] if os.path.isdir(here.checkpoints) else find_trainings(folder)
    places = ((whole, JOINT), (whole.parent, whole.name), (whole.parent.parent, whole.parent.name))
    parts = [
        part
        for workdir, category in places
        for joint in trainings_of(workdir, JOINT)
        if whole in ((part := part_of(joint, category)).folder, *part.folder.parents)
    ]
    for_all = [part for part in parts if part.category == JOINT]
    return for_all or [t for t in own if os.path.isdir(t.checkpoints)] or parts


def set_aside(workdir: Path, categories: Iterable[str]) -> dict[str, Path]:
    """Moves the folders of categories that have one into one replaced-DATE; returns where."""
    kept = workdir / f"replaced-{datetime.now():%Y%m%d-%H%M%S}"
    folders = {category: as_on_disk(workdir / category) for category in categories}
    there = {category: folder for category, folder in folders.items() if folder.exists()}
    return {category: moved_aside(folder, kept) for category, folder in there.items()}


def moved_aside(path: Path, folder: Path) -> Path:
    """Moves `path` into `folder` under a name that is free there, and returns that."""
    folder.mkdir(exist_ok=True)
    names = itertools.chain([path.name], (f"{path.name}.{i}" for i in itertools.count(1)))
    target = next(folder / name for name in names if not (folder / name).exists())
    return path.rename(target)
