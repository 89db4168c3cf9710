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

CATEGORY_RESULTS = "results.json"
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


def append_row(path: Path, row: Row) -> None:
    """Appends one JSON line; NaN is not allowed."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def drop_rows_after(path: Path, step: int) -> None:
    """Keeps of a file of JSON lines the whole ones up to `step`, where a training goes on."""

    def keep(line: str) -> bool:
        try:
            return json.loads(line)["step"] <= step
        except ValueError:  # half a line, of a run that was killed
            return False

    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        write_text(path, "".join(f"{line}\n" for line in lines if keep(line)))


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

    def values(name: str) -> str:
        return ", ".join(sorted({str(row[name]) for row in rows}))

    text = (
        "Metrics in per cent, of the last step (not the best on the test set). "
        f"Backbone {values('backbone')}, teacher {values('teacher_weights')}, "
        f"{values('image_size')} pixels, {values('num_epochs')} epochs, loss {values('loss')}, "
        f"seed {values('seed')}.\n"
    )
    for row in rows:
        if row["num_steps"] < row["last_step"]:
            text += (
                f"\n**{row['category']} is UNFINISHED: step {row['num_steps']} of "
                f"{row['last_step']}.**\n"
            )
    if any(row["teacher_weights"] == "random" for row in rows):
        text += (
            "\n**The teacher is RANDOM, without ImageNet weights: "
            "these figures say nothing about the method.**\n"
        )
    return text


def write_results(workdir: Path) -> str:
    """Gathers the results of all categories in `workdir` into results.json, .csv and .md.

    Returns the Markdown text.
    """
    paths = sorted(workdir.glob(f"*/{CATEGORY_RESULTS}"))
    found = [(path.parent.name, json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    # Other runs' tables, one folder down, have the same name.
    rows = [row for folder, row in found if row.get("category") == folder]
    write_json(workdir / "results.json", {"categories": rows, "mean": mean_row(rows)})
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows([*rows, mean_row(rows)])
    write_text(workdir / "results.csv", table.getvalue())
    text = f"# Results\n\n{protocol(rows)}\n{markdown_table(rows)}"
    write_text(workdir / "results.md", text)
    return text
