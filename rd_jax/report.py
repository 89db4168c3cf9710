"""Result files: one per category, and the table over all of them."""

import csv
import io
import json
import os
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rd_jax.metrics import IMAGE_METRICS, PIXEL_METRICS

METRICS = (IMAGE_METRICS[0], *PIXEL_METRICS[:2], *IMAGE_METRICS[1:], *PIXEL_METRICS[2:])
Row = Mapping[str, Any]


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing: to a temporary name first, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON; NaN is not allowed."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def mean_row(rows: Sequence[Row]) -> dict[str, Any]:
    """The mean of each metric over the categories that define it."""
    means: dict[str, Any] = {"category": "mean"}
    for name in METRICS:
        values = [row[name] for row in rows if row[name] is not None]
        means[name] = statistics.fmean(values) if values else None
    return means


def markdown_table(rows: Sequence[Row]) -> str:
    """Metrics in per cent, a row per category and their mean; "n/a" where not defined."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    def cell(value: float | None) -> str:
        return "n/a" if value is None else f"{100 * value:.2f}"

    lines = [line(["category", *METRICS]), line(["---", *["---:"] * len(METRICS)])]
    for row in [*rows, mean_row(rows)]:
        lines.append(line([row["category"], *(cell(row[name]) for name in METRICS)]))
    return "\n".join(lines) + "\n"


def protocol(rows: Sequence[Row]) -> str:
    """What the figures are, in the words that stand above the table."""
    row = rows[0]
    text = (
        f"Metrics in per cent, of the last step (not the best on the test set). "
        f"Backbone {row['backbone']}, {row['image_size']} pixels, {row['num_epochs']} epochs, "
        f"loss {row['loss']}, seed {row['seed']}.\n"
    )
    if any(row["teacher_weights"] == "random" for row in rows):
        text += (
            "\n**The teacher is RANDOM, without ImageNet weights: "
            "these figures say nothing about the method.**\n"
        )
    return text


def write_results(workdir: Path, rows: Sequence[Row]) -> str:
    """Writes results.json, .csv and .md to `workdir` and returns the Markdown text."""
    write_json(workdir / "results.json", {"categories": list(rows), "mean": mean_row(rows)})
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows([*rows, mean_row(rows)])
    write_text(workdir / "results.csv", table.getvalue())
    text = f"# Results\n\n{protocol(rows)}\n{markdown_table(rows)}"
    write_text(workdir / "results.md", text)
    return text
