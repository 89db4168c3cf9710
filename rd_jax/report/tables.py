"""Tables: what the figures are, and the figures of all trainings of a run."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from rd_jax.method.metrics import METRICS
from rd_jax.report.words import needs, percent
from rd_jax.store.results import AUROC_OF_SCORE, Result, mean_row, rows_of_categories
from rd_jax.store.rows import Row, csv_table, write_json
from rd_jax.store.workdir import Evaluation, Workdir
from rd_jax.system.errors import printable
from rd_jax.system.files import write_whole


def _escaped(text: str) -> str:
    """Return text, which may hold names of folders and files, as one line that is not Markdown."""
    return re.sub(r"[\\`*<&|]|(?<=\])\(", r"\\\g<0>", printable(text))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column are texts; the others are aligned as numbers."""
    lines = [[_escaped(cell) for cell in cells] for cells in (header, *rows)]
    lines.insert(1, ["---", *["---:"] * (len(header) - 1)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def per_cent(row: Row, name: str) -> str:
    """Return a metric, with its standard deviation if there is one; "n/a" if it is not defined."""
    if row.get(name) is None:
        return "n/a"
    deviation = row.get(f"{name}_std")
    return f"{100 * row[name]:.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")


def markdown_protocol(rows: Sequence[Row]) -> str:
    """Return how the figures of these rows came about, and what to beware of."""
    warnings = (f"**{_escaped(text)}**" for text in warnings_of(rows))
    return "\n\n".join([*map(_escaped, protocol(rows)), *warnings]) + "\n"


def protocol(rows: Sequence[Row]) -> list[str]:
    """Return how the figures of these rows came about, as paragraphs of plain text."""
    trained = [row for row in rows if not row["rd4ad_checkpoint"]]
    reverse = [row for row in rows if row["direction"] == "reverse"]
    sizes = sorted({"x".join(map(str, np.ravel(row["image_size"]))) for row in rows})
    has_seeds = any(len(row.get("seeds", ())) > 1 for row in rows)
    is_fused = any(row["map_fusion"] == "product" for row in rows)
    what = [
        "Metrics in per cent",
        "of the last step (not the best on the test set)" if trained else "",
        "mean ± standard deviation over the seeds" if has_seeds else "",
    ]
    how = [
        f"Backbone {_values(rows, 'backbone')}",
        f"teacher {_values(rows, 'teacher_weights')}",
        f"bottleneck {_values(reverse, 'bottleneck')}" if reverse else "",
        "forward distillation" if len(reverse) < len(rows) else "",
        f"scales {_values(rows, 'scales')}",
        f"{', '.join(sizes)} pixels",
        "aspect ratio kept" if any(row["resize"] == "fit" for row in rows) else "",
        f"{_values(rows, 'map_fusion')} of their maps" if is_fused else "",
        *(_training(trained) if trained else ()),
    ]
    text = ". ".join(", ".join(filter(None, parts)) for parts in (what, how))
    return [f"{text}.", *_notes(rows)]


def _values(rows: Sequence[Row], name: str) -> str:
    return ", ".join(sorted({str(row[name]) for row in rows} - {""}))


def _training(rows: Sequence[Row]) -> list[str]:
    kept = [rate for row in rows for rate in np.ravel(row["kept_false_positive_rate"])]  # of seeds
    rate = max((rate for rate in kept if rate is not None), default=None)
    asked = min(row["false_positive_rate"] or 0.0 for row in rows)
    seeds = sorted({seed for row in rows for seed in row.get("seeds", [row.get("seed")])})
    held_out = "no hold-out"
    if any(row["num_held_out"] for row in rows):
        held_out = f"hold-out {_values(rows, 'holdout')} of the training images for the thresholds"
        if rate is not None:
            held_out += f", above which {percent(rate)} of new normal images are expected"
            held_out += f" ({needs(asked)} images)" if rate > asked else ""
    return [
        held_out,
        f"{_values(rows, 'num_epochs')} epochs",
        f"loss {_values(rows, 'loss')}",
        f"averaged (ema {_values(rows, 'ema')})" if any(row["ema"] for row in rows) else "",
        f"seed {', '.join(map(str, seeds))}",
    ]


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    if datasets := _values(rows, "dataset"):
        yield (
            f"One-class novelty detection on {datasets}: in each row one class is normal and all "
            "others are anomalous; image_auroc is that of the "
            f"{_values(rows, 'image_score')} of the map."
        )
    if joint := [row["category"] for row in rows if row["joint"]]:
        which = "all categories" if len(joint) == len(rows) else ", ".join(joint)
        yield f"One student for {which}, trained on them together."
    for row in rows:
        if row["rd4ad_checkpoint"]:
            yield f"{row['category']}: the authors' checkpoint {row['rd4ad_checkpoint']}."


def warnings_of(rows: Sequence[Row]) -> list[str]:
    """Return what to beware of in the figures of these rows, as paragraphs of plain text."""
    unfinished = [
        f"{row['category']} is UNFINISHED: step {row['num_steps']} of {row['last_step']}."
        for row in rows
        if (row["num_steps"] or 0) < (row["last_step"] or 0)  # the authors' code tells neither
    ]
    is_random = any(row["teacher_weights"] == "random" for row in rows)
    return unfinished + is_random * [
        "The teacher is RANDOM, without ImageNet weights: these figures say nothing about the "
        "method."
    ]


def write_results(workdir: Path, found: dict[str, list[Result]]) -> str:
    """Write the results of a run, as of `read_results`, into its results.json, .csv and .md.

    Write results.json of each category that has several seeds, too. Return the Markdown text.
    """
    run, rows, mean = Workdir(workdir), rows_of_categories(found), mean_row(found)
    for category, row in zip(found, rows, strict=True):
        if "seeds" in row:
            write_json(Evaluation(workdir, category).results, row)
    write_json(run.results, {"categories": rows, "mean": mean})
    write_whole(run.results.with_suffix(".csv"), csv_table([*rows, mean]).encode())
    label, of_scores = "category", AUROC_OF_SCORE.values()
    names = [name for name in METRICS if name not in of_scores]
    if all(row["dataset"] for row in rows):
        label, names = "normal class", ["image_auroc", *of_scores]
    cells = [[row["category"], *(per_cent(row, n) for n in names)] for row in [*rows, mean]]
    text = f"# Results\n\n{markdown_protocol(rows)}\n{markdown_table([label, *names], cells)}"
    write_whole(run.results.with_suffix(".md"), text.encode())
    return text
