"""Write tables: the figures of all trainings of a run, and how they were measured."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from rd_jax.method.metrics import METRICS
from rd_jax.report.words import answer, caution, needs, percent, rate_in_words
from rd_jax.store.results import (
    AT_THRESHOLD,
    AUROC_OF_SCORE,
    Result,
    mean_row,
    rows_of_categories,
)
from rd_jax.store.rows import Row, csv_table, write_json
from rd_jax.store.workdir import Evaluation, Workdir
from rd_jax.system.errors import printable
from rd_jax.system.files import write_whole

TEMPLATES = Environment(
    loader=PackageLoader("rd_jax.report"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {f.__name__: f for f in (printable, percent, needs, rate_in_words, caution)}


def _escaped(text: str) -> str:
    """Return text, such as file names, as one line without Markdown's special characters."""
    return re.sub(r"[\\`*<&|]|(?<=\])\(", r"\\\g<0>", printable(text))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table. The first column is text; the others are aligned as numbers."""
    lines = [[_escaped(cell) for cell in cells] for cells in (header, *rows)]
    lines.insert(1, ["---", *["---:"] * (len(header) - 1)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def per_cent(row: Row, name: str) -> str:
    """Return a metric with its standard deviation, if there is one; "n/a" if not defined."""
    if row.get(name) is None:
        return "n/a"
    deviation = row.get(f"{name}_std")
    return f"{100 * row[name]:.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")


def markdown_protocol(rows: Sequence[Row]) -> str:
    """Return the warnings and the protocol of these rows as Markdown."""
    warnings = [f"**{_escaped(text)}**" for text in warnings_of(rows)]
    return "\n\n".join([*warnings, *map(_escaped, protocol(rows))]) + "\n"


def protocol(rows: Sequence[Row]) -> list[str]:
    """Return how the figures of these rows were made, as paragraphs of plain text."""
    trained = [row for row in rows if not row["rd4ad_checkpoint"]]
    rates = [rate for row in trained for rate in np.ravel(row["kept_false_positive_rate"])]
    text = TEMPLATES.get_template("protocol.txt").render(
        rows=rows,
        has_figures=bool(columns(rows)[1]),
        sizes=sorted({"x".join(map(str, np.ravel(row["image_size"]))) for row in rows}),
        seeds=sorted({seed for row in trained for seed in row.get("seeds", [row.get("seed")])}),
        rate=max((rate for rate in rates if rate is not None), default=None),
        values=_values,
    )
    return text.splitlines()


def _values(rows: Sequence[Row], name: str) -> str:
    return printable(", ".join(sorted({str(row[name]) for row in rows} - {""})))


def warnings_of(rows: Sequence[Row]) -> list[str]:
    """Return warnings about the figures of these rows, as paragraphs of plain text."""
    return TEMPLATES.get_template("warnings.txt").render(rows=rows).splitlines()


def columns(rows: Sequence[Row]) -> tuple[str, dict[str, str]]:
    """Return the title of the first column, and the metrics that rows have, with their labels.

    The paper uses the AUROCs of sum and maximum for novelty detection only.
    """
    of_scores, is_novelty = AUROC_OF_SCORE.values(), all(row["dataset"] for row in rows)
    usual = [name for name in METRICS if name not in of_scores]
    names = ["image_auroc", *of_scores] if is_novelty else usual
    labels = {name: METRICS[name].label for name in names} | AT_THRESHOLD
    defined = {n: label for n, label in labels.items() if any(row[n] is not None for row in rows)}
    return "normal class" if is_novelty else "category", defined


def write_results(workdir: Path, found: dict[str, list[Result]]) -> str:
    """Write the results of a run, given by `read_results`, to its results.json, .csv and .md.

    Also write results.json of each category that has several seeds. Return the text for a console:
    the first line, the table and the warnings.
    """
    run, rows, mean = Workdir(workdir), rows_of_categories(found), mean_row(found)
    for category, row in zip(found, rows, strict=True):
        if "seeds" in row:
            write_json(Evaluation(workdir, category).results, row)
    write_json(run.results, {"categories": rows, "mean": mean})
    write_whole(run.results.with_suffix(".csv"), csv_table([*rows, mean]).encode())
    label, names = columns(rows)
    shown = [*rows, mean] if len(rows) > 1 else rows
    cells = [[row["category"], *(per_cent(row, name) for name in names)] for row in shown]
    table = markdown_table([label, *names], cells) if names else ""
    results = [result.row for of_category in found.values() for result in of_category]
    text = "\n".join(filter(None, [f"{answer(results)}\n", table]))
    whole = f"# Results\n\n{text}\n{markdown_protocol(rows)}"
    write_whole(run.results.with_suffix(".md"), whole.encode())
    return "\n".join([text, *warnings_of(rows)])
