"""Results as rows: one for each evaluation, summarised over seeds and over categories."""

import logging
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rd_jax.config import EVALUATED_ALIKE, FIELDS, RECORDED
from rd_jax.method.metrics import METRICS
from rd_jax.store.rows import Row, read_json
from rd_jax.store.workdir import Evaluation, Workdir
from rd_jax.system.errors import UserError

logger = logging.getLogger(__name__)

AUROC_OF_SCORE = {"sum": "image_auroc_sum", "max": "image_auroc_max"}
TIMING = ("train_seconds", "eval_seconds", "images_per_second")
_COUNTS = ("num_steps", "last_step", "num_held_out", "kept_false_positive_rate")
_NUMBERS = (*METRICS, *TIMING, *_COUNTS)


class Result(NamedTuple):
    """An evaluation and its results.json."""

    evaluation: Evaluation
    row: Row


def read_results(workdir: Path) -> dict[str, list[Result]]:
    """Return the results of each category, one for each seed.

    What an older version did not write yet has its default, and a number is None.
    """
    defaults = {name: FIELDS[name].default for name in RECORDED} | dict.fromkeys(_NUMBERS)
    found: dict[str, list[Result]] = {}
    for evaluation in Workdir(workdir).evaluations():
        row = read_json(evaluation.results)
        if row.get("category") != evaluation.category:  # the table of another run, one folder down
            continue
        row |= {name: value for name, value in defaults.items() if name not in row}
        if wrong := [name for name in defaults if not _is_possible(name, row[name])]:
            logger.warning(
                "%s is left out, since %s in it cannot be: mend or remove it",
                *(evaluation.results, ", ".join(wrong)),
            )
            continue
        found.setdefault(evaluation.category, []).append(Result(evaluation, row))
    return found


def _is_possible(name: str, value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, int | float) if name in _NUMBERS else FIELDS[name].rule.holds(value)


def rows_of_categories(found: dict[str, list[Result]]) -> list[Row]:
    """Return one row for each category, `over_seeds` where it has seeds."""
    return [
        results[0].row
        if results[0].evaluation.seed is None
        else over_seeds([result.row for result in results])
        for results in found.values()
    ]


def over_seeds(rows: Sequence[Row]) -> dict[str, Any]:
    """Return one row for rows that differ in their seeds: means, and NAME_std for each metric.

    The standard deviation is that of a sample (n - 1), and None for a single seed. A fact in
    which the rows differ becomes the list of its values; `seed` becomes the list `seeds`. Raise
    UserError if the rows were evaluated differently.
    """
    for name in EVALUATED_ALIKE:
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
        elif name in ("num_steps", "last_step"):  # one seed may have gone on for longer
            choose = min if name == "num_steps" else max
            summary[name] = choose((v for v in values if v is not None), default=None)
        else:
            summary[name] = values[0] if all(v == values[0] for v in values) else values
    return summary | means(rows, (*METRICS, *TIMING)) | _deviations(rows)


def mean_row(found: dict[str, list[Result]]) -> dict[str, Any]:
    """Return the mean of each metric over the categories that define it.

    With the same seeds in each, also the standard deviation of that mean over the seeds.
    """
    seed_rows = [[result.row for result in results] for results in found.values()]
    row = {"category": "mean"} | means([over_seeds(rows) for rows in seed_rows])
    seeds = {tuple(row["seed"] for row in rows) for rows in seed_rows}
    if len(seeds) == 1 and len(seed_rows[0]) > 1:
        row |= _deviations([means(rows) for rows in zip(*seed_rows, strict=True)])
    return row


def means(rows: Sequence[Row], names: Iterable[str] = METRICS) -> dict[str, Any]:
    """Return the mean of each metric over the rows that define it."""
    values = _defined(rows, names)
    return {name: statistics.fmean(v) if v else None for name, v in values.items()}


def _deviations(rows: Sequence[Row]) -> dict[str, Any]:
    values = _defined(rows, METRICS)
    return {f"{n}_std": statistics.stdev(v) if len(v) > 1 else None for n, v in values.items()}


def _defined(rows: Sequence[Row], names: Iterable[str]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows if row[name] is not None] for name in names}
