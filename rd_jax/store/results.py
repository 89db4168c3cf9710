"""Results as rows: one for each training, summarised over seeds and over categories."""

import logging
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rd_jax.config import FIELDS, Depends
from rd_jax.method.metrics import METRICS
from rd_jax.store.rows import Row, read_json
from rd_jax.store.workdir import Training, find_trainings
from rd_jax.system.errors import UserError

logger = logging.getLogger(__name__)

AUROC_OF_SCORE = {"sum": "image_auroc_sum", "max": "image_auroc_max"}
TIMING = ("train_seconds", "eval_seconds", "images_per_second")
_NUMBERS = (
    *(*METRICS, *TIMING, "num_steps", "last_step"),
    *("num_held_out", "kept_false_positive_rate"),
)
_OF_SCORES = Depends.SCORING | Depends.APPLIED
_EVALUATED_ALIKE = (
    *(name for name, field in FIELDS.items() if field.depends & _OF_SCORES),
    "dtype",
)
# Of the config, as it was evaluated.
RECORDED = (
    *("dataset", "teacher_weights", "rd4ad_checkpoint", "holdout"),
    *("loss", "ema", "seed", "num_epochs", "joint"),
    *_EVALUATED_ALIKE,
)


class Result(NamedTuple):
    """A training and its results.json."""

    training: Training
    row: Row


def read_results(workdir: Path) -> dict[str, list[Result]]:
    """The results of each category of `workdir`, one for each seed.

    What an older version did not write yet has its default, and a metric is None.
    """
    defaults = {name: FIELDS[name].default for name in RECORDED} | dict.fromkeys(_NUMBERS)
    found: dict[str, list[Result]] = {}
    for training in find_trainings(workdir):
        row = read_json(training.results)
        # Other runs' tables, one folder down, have the same name.
        if row.get("category") == training.category:
            if wrong := _wrong_fields(row):
                logger.warning(
                    "%s is left out, since %s in it cannot be: mend or remove it",
                    *(training.results, ", ".join(wrong)),
                )
                continue
            missing = {name: value for name, value in defaults.items() if name not in row}
            found.setdefault(training.category, []).append(Result(training, row | missing))
    return found


def _wrong_fields(row: Row) -> list[str]:
    known = {name: row[name] for name in (*RECORDED, *_NUMBERS) if row.get(name) is not None}
    return [
        name
        for name, value in known.items()
        if not (
            isinstance(value, int | float) if name in _NUMBERS else FIELDS[name].rule.holds(value)
        )
    ]


def rows_of_categories(found: dict[str, list[Result]]) -> list[Row]:
    """One row for each category; `over_seeds` where it has seeds."""
    return [
        row if training.seed is None else over_seeds([result.row for result in results])
        for results in found.values()
        for training, row in results[:1]
    ]


def over_seeds(rows: Sequence[Row]) -> dict[str, Any]:
    """One row of rows that differ in their seeds: means, and NAME_std for each metric.

    The standard deviation is that of a sample (n - 1), and None for a single seed. A fact in
    which the rows differ becomes the list of its values; `seed` becomes the list `seeds`. Raises
    UserError if the rows were evaluated differently.
    """
    for name in _EVALUATED_ALIKE:
        if any(row[name] != rows[0][name] for row in rows):
            raise UserError(
                f"the seeds of {rows[0]['category']} were evaluated with different {name}: "
                "evaluate all of them alike, without --config.seeds"
            )
    summary: dict[str, Any] = {}
    for name in rows[0]:
        values: list[Any] = [row.get(name) for row in rows]
        if name == "seed":
            summary["seeds"] = values
        elif name == "num_steps":
            summary[name] = min((v for v in values if v is not None), default=None)
        elif name == "last_step":  # one may have gone on for longer, which the others then lack
            summary[name] = max((v for v in values if v is not None), default=None)
        else:
            summary[name] = values[0] if all(v == values[0] for v in values) else values
    return summary | means(rows, (*METRICS, *TIMING)) | _deviations(rows)


def mean_row(found: dict[str, list[Result]]) -> dict[str, Any]:
    """The mean of each metric over the categories that define it.

    With the same seeds in each, also the standard deviation, over the seeds, of that mean.
    """
    seed_rows = [[result.row for result in results] for results in found.values()]
    row = {"category": "mean"} | means([over_seeds(rows) for rows in seed_rows])
    seeds = {tuple(row["seed"] for row in rows) for rows in seed_rows}
    if len(seeds) == 1 and len(seed_rows[0]) > 1:
        row |= _deviations([means(rows) for rows in zip(*seed_rows, strict=True)])
    return row


def means(rows: Sequence[Row], names: Iterable[str] = METRICS) -> dict[str, Any]:
    """Of each metric, the mean over the rows that define it."""
    values = _defined(rows, names)
    return {name: statistics.fmean(v) if v else None for name, v in values.items()}


def _deviations(rows: Sequence[Row]) -> dict[str, Any]:
    values = _defined(rows, METRICS)
    return {f"{n}_std": statistics.stdev(v) if len(v) > 1 else None for n, v in values.items()}


def _defined(rows: Sequence[Row], names: Iterable[str]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows if row[name] is not None] for name in names}
