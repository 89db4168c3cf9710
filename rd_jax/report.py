"""Result files: one per category, and the table over all of them."""

import contextlib
import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rd_jax import results
from rd_jax.files import write_whole, writing
from rd_jax.results import AUROC_OF_SCORE, METRICS, Row


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing, as UTF-8."""
    write_whole(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON; NaN is not allowed."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def append_row(path: Path, row: Row) -> None:
    """Appends one JSON line; NaN is not allowed."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def read_rows(path: Path) -> list[Row]:
    """The whole lines of a file of JSON lines; none if there is no file."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        # Half a line is of a run that was killed.
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def drop_rows_after(path: Path, step: int) -> None:
    """Keeps of a file of JSON lines the whole ones up to `step`, where a training goes on."""
    if path.exists():
        kept = (row for row in read_rows(path) if row["step"] <= step)
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A first column of texts, the others aligned as numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def csv_table(rows: Sequence[Row]) -> str:
    """Rows as CSV, with all their fields; empty where a row lacks one."""
    fields = list(dict.fromkeys(name for row in rows for name in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def per_cent(row: Row, name: str) -> str:
    """A metric, with its standard deviation if there is one; "n/a" where it is not defined."""
    if row[name] is None:
        return "n/a"
    deviation = row.get(f"{name}_std")
    return f"{100 * row[name]:.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")


def protocol(rows: Sequence[Row]) -> str:
    """What the figures are, in the words that stand above the table."""

    def values(name: str) -> str:
        return ", ".join(sorted({str(row[name]) for row in rows}))

    text = "Metrics in per cent"
    trained = [row for row in rows if not row["rd4ad_checkpoint"]]
    if trained:
        text += ", of the last step (not the best on the test set)"
    if any(len(row.get("seeds", ())) > 1 for row in rows):
        text += ", mean ± standard deviation over the seeds"
    text += (
        f". Backbone {values('backbone')}, teacher {values('teacher_weights')}, bottleneck "
        f"{values('bottleneck')}, scales {values('scales')}, {values('image_size')} pixels"
    )
    if trained:
        seeds = sorted({seed for row in trained for seed in row.get("seeds", [row.get("seed")])})
        epochs, losses = ({str(row[name]) for row in trained} for name in ("num_epochs", "loss"))
        if any(row["num_held_out"] for row in trained):
            text += f", hold-out {values('holdout')} of the training images for the thresholds"
        else:
            text += ", no hold-out"
        text += (
            f", {', '.join(sorted(epochs))} epochs, loss {', '.join(sorted(losses))}, "
            f"seed {', '.join(map(str, seeds))}"
        )
    text += ".\n"
    datasets = ", ".join(sorted({row["dataset"] for row in rows} - {""}))
    if datasets:
        text += (
            f"\nOne-class novelty detection on {datasets}: in each row one class is normal and "
            f"all others are anomalous; image_auroc is that of the {values('image_score')} of the "
            "map.\n"
        )
    for row in rows:
        if row["rd4ad_checkpoint"]:
            text += f"\n{row['category']}: the authors' checkpoint {row['rd4ad_checkpoint']}.\n"
        elif row["num_steps"] < row["last_step"]:
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
    """Gathers the results of all trainings in `workdir` into results.json, .csv and .md.

    A category of several seeds gets its own results.json, too. Returns the Markdown text.
    """
    found = results.read_results(workdir)
    rows = results.rows_of_categories(found, workdir)
    for row in rows:
        if "seeds" in row:
            write_json(workdir / row["category"] / results.FILE, row)
    mean = results.mean_row(list(found.values()))
    write_json(workdir / results.FILE, {"categories": rows, "mean": mean})
    write_text(workdir / "results.csv", csv_table([*rows, mean]))
    is_novelty = all(row["dataset"] for row in rows)
    label, names = (
        ("normal class", ("image_auroc", *AUROC_OF_SCORE.values()))
        if is_novelty
        else ("category", METRICS)
    )
    cells = [[row["category"], *(per_cent(row, n) for n in names)] for row in [*rows, mean]]
    text = f"# Results\n\n{protocol(rows)}\n{markdown_table([label, *names], cells)}"
    write_text(workdir / "results.md", text)
    return text
