"""Draw the plot of docs/recipe.md from docs/recipe_trials.csv.

python -m benchmarks.recipe.plot_trials
"""

import csv
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

DOCS = Path(__file__).parents[2] / "docs"
EPOCHS = (5, 10, 20, 40)
LINES = {  # label: recipe, and the evaluated weights
    "the recipe": ("mixed, batch 4", "average_of_a_tenth"),
    "mixed, batch 16": ("mixed, batch 16", "last_step"),
    "flattened, batch 16": ("flattened, batch 16", "last_step"),
    "per position, batch 16 (paper)": ("per position, batch 16", "last_step"),
}


def mean_auroc(rows: list[dict[str, str]], name: str, epochs: int, line: tuple[str, str]) -> float:
    """Return the mean image AUROC over the seeds 0 and 1, in per cent."""
    wanted = ("256", name, str(epochs), *line)
    keys = ("pixels", "set", "epochs", "recipe", "weights")
    found = [
        float(row["image_auroc"])
        for row in rows
        if tuple(row[key] for key in keys) == wanted and row["seed"] in ("0", "1")
    ]
    return sum(found) / len(found)


def main() -> None:
    """Write docs/recipe.png."""
    with (DOCS / "recipe_trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    mpl.use("agg")
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    for ax, name in zip(axes, ("bottle", "capsule"), strict=True):
        for label, line in LINES.items():
            values = [mean_auroc(rows, name, epochs, line) for epochs in EPOCHS]
            ax.plot(EPOCHS, values, marker="o", label=label)
        ax.set(title=name, xlabel="epochs", ylabel="image AUROC, per cent", xscale="log")
        ax.set_xticks(EPOCHS, map(str, EPOCHS))
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(DOCS / "recipe.png", dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    main()
