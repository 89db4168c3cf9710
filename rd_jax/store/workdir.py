"""The folder of a run: the one place that knows what lies where in it.

WORKDIR/results.{json,csv,md}, report.html, figures/     of all trainings
WORKDIR/CATEGORY/                                        a training, or with several seeds
WORKDIR/CATEGORY/seed_K/                                 a training for each, and their results.json
WORKDIR/replaced-DATE/CATEGORY/                          what --restart moved aside

A training has checkpoints/, results.json, metrics.jsonl, evaluation.npz and, where they are asked
for or needed, tensorboard/ and damaged/.
"""

import itertools
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

RESULTS = "results.json"


class Training(NamedTuple):
    """Where one training of a category is kept; `seed` is None where it has no folder seed_K."""

    folder: Path
    category: str
    seed: int | None = None

    @property
    def name(self) -> str:
        """CATEGORY or CATEGORY-seed_K."""
        return self.category if self.seed is None else f"{self.category}-seed_{self.seed}"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def results(self) -> Path:
        """Facts and figures, written last."""
        return self.folder / RESULTS

    @property
    def metrics(self) -> Path:
        """Rows of the loss and, where it was asked for, of metrics on the way."""
        return self.folder / "metrics.jsonl"

    @property
    def evaluation(self) -> Path:
        """What the report shows."""
        return self.folder / "evaluation.npz"

    @property
    def tensorboard(self) -> Path:
        """The folder of event files."""
        return self.folder / "tensorboard"

    @property
    def damaged(self) -> Path:
        """The folder that damaged checkpoints are moved to."""
        return self.folder / "damaged"


class Workdir(NamedTuple):
    """Where what is said of all trainings of a run is kept."""

    folder: Path

    @property
    def results(self) -> Path:
        """All rows and their mean as JSON; .csv and .md stand beside it."""
        return self.folder / RESULTS

    @property
    def page(self) -> Path:
        """The report."""
        return self.folder / "report.html"

    def figure(self, training: Training) -> Path:
        """What the names of a training's figures begin with."""
        return self.folder / "figures" / training.name


def category_results(training: Training) -> Path:
    """Facts and mean figures over the seeds of a training's category."""
    return training.folder.parent / RESULTS


def training_of(workdir: Path, category: str, seed: int | None = None) -> Training:
    """The training of a category, or of one of its seeds, there or not."""
    folder = workdir / category
    return Training(folder if seed is None else folder / f"seed_{seed}", category, seed)


def trainings_of(workdir: Path, category: str) -> list[Training]:
    """The trainings of a category that are there, seeds in order."""
    numbers = (p.name.removeprefix("seed_") for p in (workdir / category).glob("seed_*"))
    seeds = sorted(int(number) for number in numbers if number.isdecimal())
    each = [training_of(workdir, category, seed) for seed in (None, *seeds)]
    return [training for training in each if _is_there(training)]


def find_trainings(workdir: Path) -> list[Training]:
    """All trainings that are there, finished or not; numbered classes in order."""
    if not workdir.is_dir():
        return []
    names = sorted((path.name for path in workdir.iterdir() if path.is_dir()), key=_natural)
    return [training for name in names for training in trainings_of(workdir, name)]


def trainings_at(folder: Path) -> list[Training]:
    """The training that this folder is, or those of the run or category that it is."""
    here = Training(folder, folder.name)
    return [here] if here.checkpoints.is_dir() else find_trainings(folder)


def set_aside(workdir: Path, category: str) -> Path | None:
    """Moves a category's folder, if there is one, into replaced-DATE; returns where it is."""
    folder = workdir / category
    if not folder.exists():
        return None
    return moved_aside(folder, workdir / f"replaced-{datetime.now():%Y%m%d-%H%M%S}")


def moved_aside(path: Path, folder: Path) -> Path:
    """Moves `path` into `folder` under a name that is free there, and returns that."""
    folder.mkdir(exist_ok=True)
    names = itertools.chain([path.name], (f"{path.name}.{i}" for i in itertools.count(1)))
    target = next(folder / name for name in names if not (folder / name).exists())
    return path.rename(target)


def _is_there(training: Training) -> bool:
    # Over several seeds, results.json of the category is a summary.
    return training.checkpoints.is_dir() or (
        training.results.is_file() and not any(training.folder.glob("seed_*"))
    )


def _natural(name: str) -> tuple[int, int, str]:
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)
