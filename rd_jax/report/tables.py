"""Tables: what the figures are, and the figures of all trainings of a run."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rd_jax.method.metrics import METRICS
from rd_jax.store.results import AUROC_OF_SCORE, mean_row, read_results, rows_of_categories
from rd_jax.store.rows import Row, csv_table, write_json, write_text
from rd_jax.store.workdir import Workdir, category_results


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A first column of texts, the others aligned as numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def per_cent(row: Row, name: str) -> str:
    """A metric, with its standard deviation if there is one; "n/a" where it is not defined."""
    if row.get(name) is None:
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
        elif (row["num_steps"] or 0) < (row["last_step"] or 0):
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
    found = read_results(workdir)
    rows = rows_of_categories(found)
    for row, results in zip(rows, found.values(), strict=True):
        if "seeds" in row:
            write_json(category_results(results[0].training), row)
    mean, path = mean_row(found), Workdir(workdir).results
    write_json(path, {"categories": rows, "mean": mean})
    write_text(path.with_suffix(".csv"), csv_table([*rows, mean]))
    is_novelty = all(row["dataset"] for row in rows)
    label, names = (
        ("normal class", ("image_auroc", *AUROC_OF_SCORE.values()))
        if is_novelty
        else ("category", [name for name in METRICS if name not in AUROC_OF_SCORE.values()])
    )
    cells = [[row["category"], *(per_cent(row, n) for n in names)] for row in [*rows, mean]]
    text = f"# Results\n\n{protocol(rows)}\n{markdown_table([label, *names], cells)}"
    write_text(path.with_suffix(".md"), text)
    return text
