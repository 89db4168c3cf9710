"""Results as rows: read from a workdir, summarised over seeds and over categories.

A workdir has a folder for each category (or class), which holds either one training or, in a
folder seed_K, one for each of `config.seeds`; every training leaves its own results.json.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rd_jax.errors import UserError
from rd_jax.metrics import IMAGE_METRICS, PIXEL_METRICS

FILE = "results.json"
METRICS = (IMAGE_METRICS[0], *PIXEL_METRICS[:2], *IMAGE_METRICS[1:], *PIXEL_METRICS[2:])
AUROC_OF_SCORE = {"sum": "image_auroc_sum", "max": "image_auroc_max"}
METRIC_NAMES = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "image_ap": "image AP",
    "image_f1max": "image F1 max",
    "pixel_ap": "pixel AP",
    "pixel_f1max": "pixel F1 max",
    "image_auroc_sum": "image AUROC (sum)",
    "image_auroc_max": "image AUROC (maximum)",
}
_AVERAGED = (
    *(*METRICS, *AUROC_OF_SCORE.values()),
    *("train_seconds", "eval_seconds", "images_per_second"),
)
_EVALUATED_ALIKE = ("image_size", "scales", "dtype", "blur_sigma", "image_score")
Row = Mapping[str, Any]


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
        values = [row.get(name) for row in rows]
        if name == "seed":
            summary["seeds"] = values
        elif name == "num_steps":
            summary[name] = min(row[name] for row in rows)
        elif name in _AVERAGED:
            summary[name] = _mean(values)
        else:
            summary[name] = values[0] if all(v == values[0] for v in values) else values
    return summary | _deviations(rows)


def mean_row(seed_rows: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """The mean of each metric over the categories that define it, given their rows of each seed.

    With the same seeds in each, also the standard deviation, over the seeds, of that mean.
    """
    averaged = [name for name in (*METRICS, *AUROC_OF_SCORE.values()) if name in seed_rows[0][0]]

    def mean_over(rows: Sequence[Row]) -> dict[str, Any]:
        return {name: _mean([row.get(name) for row in rows]) for name in averaged}

    row = mean_over([over_seeds(rows) for rows in seed_rows])
    seeds = {tuple(row["seed"] for row in rows) for rows in seed_rows}
    if len(seeds) == 1 and len(seed_rows[0]) > 1:
        row |= _deviations([mean_over(rows) for rows in zip(*seed_rows, strict=True)])
    return {"category": "mean", **row}


def read_results(workdir: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each category of `workdir`, one for each seed; numbered classes in order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for folder in sorted((p for p in workdir.iterdir() if p.is_dir()), key=_natural):
        seeds = sorted(folder.glob(f"seed_*/{FILE}"), key=lambda path: _natural(path.parent))
        paths = seeds or list(folder.glob(FILE))
        rows = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        # Other runs' tables, one folder down, have the same name.
        rows = [row for row in rows if row.get("category") == folder.name]
        if rows:
            found[folder.name] = rows
    return found


def has_seeds(rows: Sequence[Row], folder: Path) -> bool:
    """Whether these rows of a category come from folders seed_K."""
    return (folder / f"seed_{rows[0]['seed']}" / FILE).exists()


def rows_of_categories(found: Mapping[str, Sequence[Row]], workdir: Path) -> list[Row]:
    """One row for each category of what `read_results` found; `over_seeds` where it has seeds."""
    rows: list[Row] = []
    for name, seed_rows in found.items():
        rows += [over_seeds(seed_rows)] if has_seeds(seed_rows, workdir / name) else seed_rows
    return rows


def _natural(path: Path) -> tuple[int, int, str]:
    number = path.name.removeprefix("seed_")
    return (0, int(number), "") if number.isdecimal() else (1, 0, path.name)


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return statistics.fmean(defined) if defined else None


def _deviations(rows: Sequence[Row]) -> dict[str, float | None]:
    deviations = {}
    for name in (*METRICS, *AUROC_OF_SCORE.values()):
        if name in rows[0]:
            values = [row[name] for row in rows if row[name] is not None]
            deviations[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return deviations
