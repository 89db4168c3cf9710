"""Results as rows: one for each evaluation, summarised over seeds and over categories."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rd_jax.config import EVALUATED_ALIKE, FIELDS, RECORDED
from rd_jax.method.metrics import METRICS
from rd_jax.store.rows import Row, read_json
from rd_jax.store.workdir import Evaluation, Workdir
from rd_jax.system.errors import UserError

AUROC_OF_SCORE = {"sum": "image_auroc_sum", "max": "image_auroc_max"}
AT_THRESHOLD = {"image_precision": "precision", "image_recall": "recall"}  # with their labels
VERDICTS = ("num_missed", "num_anomalous", "num_false_alarms", "num_normal")  # on test images
TIMING = ("train_seconds", "eval_seconds", "images_per_second")
_COUNTS = ("num_steps", "last_step", "num_held_out", "kept_false_positive_rate", "image_threshold")
_AVERAGED = (*METRICS, *AT_THRESHOLD)
# The values of fields and metrics that an evaluation of an earlier version lacks.
_DEFAULTS = {name: FIELDS[name].default for name in RECORDED} | dict.fromkeys(
    (*_AVERAGED, *VERDICTS, *TIMING, *_COUNTS)
)


class Result(NamedTuple):
    """An evaluation and its results.json."""

    evaluation: Evaluation
    row: Row


def read_results(workdir: Path) -> dict[str, list[Result]]:
    """Return the results of each category, one for each seed."""
    found: dict[str, list[Result]] = {}
    for evaluation in Workdir(workdir).evaluations():
        row = _DEFAULTS | read_json(evaluation.results)
        if row.get("category") == evaluation.name:  # else it is the table of a run one folder down
            found.setdefault(evaluation.name, []).append(Result(evaluation, row))
    return found


def rows_of_categories(found: dict[str, list[Result]]) -> list[Row]:
    """Return one row for each category, `over_seeds` where it has seeds."""
    return [
        results[0].row
        if results[0].evaluation.seed is None
        else over_seeds([result.row for result in results])
        for results in found.values()
    ]


def over_seeds(rows: Sequence[Row]) -> dict[str, Any]:
    """Return one row for the rows of several seeds: means, and NAME_std for each metric.

    The standard deviation is that of a sample (n - 1), and None for a single seed. If the rows
    differ in a fact, it becomes the list of its values. `seed` becomes the list `seeds`. Raise
    UserError if the rows were evaluated differently.
    """
    values: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in rows[0]}
    alike = {name: all(v == of[0] for v in of) for name, of in values.items()}
    for name in EVALUATED_ALIKE:
        if not alike[name]:
            raise UserError(
                f"the seeds of {rows[0]['category']} were evaluated with different {name}: "
                "evaluate all of them alike, without --config.seeds"
            )
    summary = {name: of[0] if alike[name] else of for name, of in values.items()}
    summary["seeds"] = values["seed"]
    del summary["seed"]
    if None not in values["num_steps"]:  # one seed may have gone on for longer
        summary |= {"num_steps": min(values["num_steps"]), "last_step": max(values["last_step"])}
    return summary | means(rows, (*_AVERAGED, *TIMING)) | _deviations(rows)


def mean_row(found: dict[str, list[Result]]) -> dict[str, Any]:
    """Return the mean of each metric over the categories that define it.

    If all categories have the same seeds, add the standard deviation of that mean over seeds.
    """
    seed_rows = [[result.row for result in results] for results in found.values()]
    row = {"category": "mean"} | means([over_seeds(rows) for rows in seed_rows], _AVERAGED)
    seeds = {tuple(row["seed"] for row in rows) for rows in seed_rows}
    if len(seeds) == 1 and len(seed_rows[0]) > 1:
        row |= _deviations([means(rows, _AVERAGED) for rows in zip(*seed_rows, strict=True)])
    return row


def means(rows: Sequence[Row], names: Iterable[str] = METRICS) -> dict[str, Any]:
    """Return the mean of each metric over the rows that define it."""
    defined = {name: [row[name] for row in rows if row[name] is not None] for name in names}
    return {name: statistics.fmean(v) if v else None for name, v in defined.items()}


def _deviations(rows: Sequence[Row]) -> dict[str, Any]:
    defined = {name: [row[name] for row in rows if row[name] is not None] for name in _AVERAGED}
    return {f"{n}_std": statistics.stdev(v) if len(v) > 1 else None for n, v in defined.items()}
