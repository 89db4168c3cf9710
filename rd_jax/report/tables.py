"""Tables: what the figures are, and the figures of all trainings of a run."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from rd_jax.method.metrics import METRICS
from rd_jax.report.promise import needs, percent
from rd_jax.store.results import AUROC_OF_SCORE, mean_row, read_results, rows_of_categories
from rd_jax.store.rows import Row, csv_table, write_json, write_text
from rd_jax.store.workdir import Workdir, category_results


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A first column of texts, the others aligned as numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    escaped = ([cell.replace("|", "\\|") for cell in cells] for cells in lines)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in escaped)


def per_cent(row: Row, name: str) -> str:
    """A metric, with its standard deviation if there is one; "n/a" where it is not defined."""
    if row.get(name) is None:
        return "n/a"
    deviation = row.get(f"{name}_std")
    return f"{100 * row[name]:.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")


def protocol(rows: Sequence[Row]) -> str:
    """What the figures are, in the words that stand above the table."""

    def values(name: str, of: Sequence[Row] = rows) -> str:
        return ", ".join(sorted({str(row[name]) for row in of} - {""}))

    trained = [row for row in rows if not row["rd4ad_checkpoint"]]
    text = "Metrics in per cent"
    if trained:
        text += ", of the last step (not the best on the test set)"
    if any(len(row.get("seeds", ())) > 1 for row in rows):
        text += ", mean ± standard deviation over the seeds"
    reverse = [row for row in rows if row["direction"] == "reverse"]
    text += f". Backbone {values('backbone')}, teacher {values('teacher_weights')}"
    text += f", bottleneck {values('bottleneck', reverse)}" if reverse else ""
    text += ", forward distillation" if len(reverse) < len(rows) else ""
    sizes = {"x".join(map(str, np.ravel(row["image_size"]))) for row in rows}
    text += f", scales {values('scales')}, {', '.join(sorted(sizes))} pixels"
    text += ", aspect ratio kept" if any(row["resize"] == "fit" for row in rows) else ""
    if any(row["map_fusion"] == "product" for row in rows):
        text += f", {values('map_fusion')} of their maps"
    if any(row["num_held_out"] for row in trained):
        text += f", hold-out {values('holdout')} of the training images for the thresholds"
        kept = (np.ravel(row["kept_false_positive_rate"]) for row in trained)  # of seeds, several
        if rates := [rate for of_row in kept for rate in of_row if rate is not None]:
            text += f", above which {percent(max(rates))} of new normal images are expected"
            asked = min(row["false_positive_rate"] or 0.0 for row in trained)
            text += f" ({needs(asked)} images)" if max(rates) > asked else ""
    elif trained:
        text += ", no hold-out"
    if trained:
        seeds = sorted({seed for row in trained for seed in row.get("seeds", [row.get("seed")])})
        text += f", {values('num_epochs', trained)} epochs, loss {values('loss', trained)}"
        if any(row["ema"] for row in trained):
            text += f", averaged (ema {values('ema', trained)})"
        text += f", seed {', '.join(map(str, seeds))}"
    paragraphs = [f"{text}."]
    if datasets := values("dataset"):
        paragraphs.append(
            f"One-class novelty detection on {datasets}: in each row one class is normal and all "
            f"others are anomalous; image_auroc is that of the {values('image_score')} of the map."
        )
    if joint := [row["category"] for row in rows if row.get("joint")]:
        which = "all categories" if len(joint) == len(rows) else ", ".join(joint)
        paragraphs.append(f"One student for {which}, trained on them together.")
    for row in rows:
        category, step, last_step = row["category"], row["num_steps"], row["last_step"]
        if row["rd4ad_checkpoint"]:
            paragraphs.append(f"{category}: the authors' checkpoint {row['rd4ad_checkpoint']}.")
        elif (step or 0) < (last_step or 0):
            paragraphs.append(f"**{category} is UNFINISHED: step {step} of {last_step}.**")
    if any(row["teacher_weights"] == "random" for row in rows):
        paragraphs.append(
            "**The teacher is RANDOM, without ImageNet weights: "
            "these figures say nothing about the method.**"
        )
    return "\n\n".join(paragraphs) + "\n"


def write_results(workdir: Path) -> str:
    """Gathers the results of all trainings in `workdir` into results.json, .csv and .md.

    A category of several seeds gets its own results.json, too. Returns the Markdown text.
    """
    found = read_results(workdir)
    rows, mean, path = rows_of_categories(found), mean_row(found), Workdir(workdir).results
    for row, results in zip(rows, found.values(), strict=True):
        if "seeds" in row:
            write_json(category_results(results[0].training), row)
    write_json(path, {"categories": rows, "mean": mean})
    write_text(path.with_suffix(".csv"), csv_table([*rows, mean]))
    label, of_scores = "category", AUROC_OF_SCORE.values()
    names = [name for name in METRICS if name not in of_scores]
    if all(row["dataset"] for row in rows):
        label, names = "normal class", ["image_auroc", *of_scores]
    cells = [[row["category"], *(per_cent(row, n) for n in names)] for row in [*rows, mean]]
    text = f"# Results\n\n{protocol(rows)}\n{markdown_table([label, *names], cells)}"
    write_text(path.with_suffix(".md"), text)
    return text
