"""The folder of a run: the one place that knows what lies where in it.

WORKDIR/results.{json,csv,md}, report.html, figures/     of all trainings
WORKDIR/CATEGORY/                                        a training, or with several seeds
WORKDIR/CATEGORY/seed_K/                                 a training for each, and their results.json
WORKDIR/replaced-DATE/CATEGORY/                          what --restart moved aside
WORKDIR/.locks/                                          which of them a process works on

A training has checkpoints/, results.json, metrics.jsonl, evaluation.npz, distances.npz and, where
they are asked for or needed, tensorboard/ and damaged/.
"""

import itertools
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rd_jax.system.errors import UserError
from rd_jax.system.files import as_on_disk


class _Inside:
    """The path of this name in an object's `folder`."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, owner: Any, _: Any = None) -> Path:
        return owner.folder / self.name


@dataclass(frozen=True)
class Training:
    """Where one training of a category is kept; `seed` is None where it has no folder seed_K."""

    folder: Path
    category: str
    seed: int | None = None

    checkpoints = _Inside("checkpoints")
    results = _Inside("results.json")  # facts and figures, written last
    metrics = _Inside("metrics.jsonl")  # rows of the loss and, where asked for, of metrics
    evaluation = _Inside("evaluation.npz")  # what the report shows
    distances = _Inside("distances.npz")  # of normal images: what thresholds come from
    tensorboard = _Inside("tensorboard")  # event files
    damaged = _Inside("damaged")  # checkpoints that were moved out of the way

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
    taken = ("checkpoints", "figures", "report.html")
    if name in taken or name.startswith(("results.", "replaced-")):
        raise UserError(
            f"category {name!r}: a run keeps other things under this name; rename the category"
        )


def training_of(workdir: Path, category: str, seed: int | None = None) -> Training:
    """The training of a category, or of one of its seeds, there or not."""
    folder = as_on_disk(workdir / category)
    return Training(folder if seed is None else folder / f"seed_{seed}", category, seed)


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
        if os.path.isdir(training.checkpoints)
        or (os.path.isfile(training.results) and not (seeds and training.seed is None))
    ]


def find_trainings(workdir: Path) -> list[Training]:
    """All trainings that are there, finished or not; numbered classes in order."""
    names = sorted(
        (path.name for path in workdir.glob("*/")),
        key=lambda name: (int(name) if name.isdecimal() else math.inf, name),
    )
    return [training for name in names for training in trainings_of(workdir, name)]


def trainings_at(folder: Path) -> list[Training]:
    """The training that this folder is, or those of the run or category that it is."""
    here = Training(folder, folder.name)
    return [here] if os.path.isdir(here.checkpoints) else find_trainings(folder)


def set_aside(workdir: Path, category: str) -> Path | None:
    """Moves a category's folder, if there is one, into replaced-DATE; returns where it is."""
    folder = as_on_disk(workdir / category)
    if not folder.exists():
        return None
    return moved_aside(folder, workdir / f"replaced-{datetime.now():%Y%m%d-%H%M%S}")


def moved_aside(path: Path, folder: Path) -> Path:
    """Moves `path` into `folder` under a name that is free there, and returns that."""
    folder.mkdir(exist_ok=True)
    names = itertools.chain([path.name], (f"{path.name}.{i}" for i in itertools.count(1)))
    target = next(folder / name for name in names if not (folder / name).exists())
    return path.rename(target)
