"""Draw the figures of an evaluation: files for papers, which the page shows in its colours."""

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rd_jax.report.gallery import Evaluated, read_evaluation
from rd_jax.report.tables import per_cent
from rd_jax.store.rows import Row, read_rows
from rd_jax.store.thresholds import StoredThresholds, read_thresholds
from rd_jax.store.workdir import JOINT, Evaluation, Training, Workdir
from rd_jax.system.files import write_whole

if TYPE_CHECKING:  # it is slow to import, and a page of kept figures does not need it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FIGURES: dict[str, Any] = {  # title, labels of the axes, place of the legend
    "roc": ("ROC curves", "false-positive rate", "true-positive rate", "lower right"),
    "pro": ("Per-region overlap", "false-positive rate", "per-region overlap", "lower right"),
    "scores": ("Image scores", "image score", "images of the class, %", "best"),
    "loss": ("Training loss", "step", "loss", "upper right"),
}
# Metadata of each kind of file, without dates, which would differ each time.
_METADATA: dict[str, Any] = {"svg": {"Date": None}, "png": {}, "pdf": {"CreationDate": None}}
# The page replaces colours by its variables, which suit a light or dark background.
INK, LINE, NORMAL, ANOMALOUS = "#1c2430", "#c9ced6", "#1f6fb2", "#c2410c"
HELD_OUT = "#2e7d4f"
_VARIABLES = {
    INK: "ink", LINE: "line", NORMAL: "normal", ANOMALOUS: "anomalous", HELD_OUT: "held"
}  # fmt: skip
_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
_STYLE: dict[Any, Any] = dict.fromkeys(_INKED, INK) | {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "rd_jax",
}


def write_figures(place: Evaluation, row: Row) -> None:
    """Write WORKDIR/figures/LABEL-NAME.svg, .png and .pdf of each figure of an evaluation.

    Read its evaluation.npz and thresholds.json, and its training's metrics.jsonl; `row` is its
    results. Remove old figures for which there is no data any more.
    """
    from matplotlib.style import context

    steps = read_rows(training_of(place, row).metrics)
    losses = [(step["step"], step["loss"]) for step in steps if "loss" in step]
    stored = read_thresholds(place.thresholds, row.get("checkpoint", -1))
    with context(_STYLE, after_reset=True):  # ignore a matplotlibrc
        figures = draw(read_evaluation(place.shown), stored, row, losses)
        for name in _FIGURES:
            for kind, metadata in _METADATA.items():
                path = _path(place, name, kind)
                path.unlink(missing_ok=True)
                if figure := figures.get(name):
                    facts = metadata | {"Title": figure.get_label()}
                    file, is_svg = io.BytesIO(), kind == "svg"
                    figure.savefig(file, format=kind, dpi=300, transparent=is_svg, metadata=facts)
                    write_whole(path, file.getvalue())


def draw(
    evaluated: Evaluated | None, stored: StoredThresholds | None, row: Row, losses: Sequence[Any]
) -> dict[str, "Figure"]:
    """Return the figures for which there is data. Their labels say what they show.

    `row` is the results; `losses` are pairs of step and loss.
    """
    from matplotlib.figure import Figure

    figures = {name: Figure((3.6, 2.7), layout="constrained") for name in _FIGURES}
    axes = {n: figures[n].add_subplot(xlabel=x, ylabel=y) for n, (_, x, y, _) in _FIGURES.items()}

    def plot(name: str, points: Any, label: str, colour: str, style: str = "-") -> None:
        if len(points):
            axes[name].plot(*np.transpose(points), style, color=colour, label=label)

    if evaluated is not None:
        image, pixel, pro = (per_cent(row, n) for n in ("image_auroc", "pixel_auroc", "aupro"))
        axes["roc"].plot([0, 1], [0, 1], ":", color=LINE)
        plot("roc", evaluated.image_roc, f"image AUROC {image} %", NORMAL)
        plot("roc", evaluated.pixel_roc, f"pixel AUROC {pixel} %", ANOMALOUS, "--")
        plot("pro", evaluated.pro, f"AUPRO {pro} %", ANOMALOUS)
        _draw_scores(axes["scores"], evaluated, stored)
    if losses:
        first_to_last = f"{losses[0][1]:.4g} to {losses[-1][1]:.4g}"
        plot("loss", losses, first_to_last, NORMAL, ".-" if len(losses) < 30 else "-")
    labels = {name: axes[name].get_legend_handles_labels()[1] for name in _FIGURES}
    for name, figure in figures.items():
        axes[name].set_ylim(bottom=0)
        figure.set_label(f"{_FIGURES[name][0]}: {', '.join(labels[name])}")
        if labels[name]:
            axes[name].legend(loc=_FIGURES[name][3])
    return {name: figure for name, figure in figures.items() if labels[name]}


def _draw_scores(axes: "Axes", evaluated: Evaluated, stored: StoredThresholds | None) -> None:
    groups = [
        ("normal", NORMAL, evaluated.scores[~evaluated.labels]),
        ("anomalous", ANOMALOUS, evaluated.scores[evaluated.labels]),
    ]
    if stored and stored.normal.is_held_out:
        name = "held out or added" if stored.normal.num_added else "held out"
        groups.append((name, HELD_OUT, stored.normal.scores))
    scores = np.concatenate([of_group for _, _, of_group in groups]).astype(np.float64)
    bins = min(30, 2 * math.isqrt(len(scores)) + 1)
    edges = np.histogram_bin_edges(scores, bins)  # two float32 may be too close for so many bins
    axes.margins(y=0.3)  # for the legend
    for label, colour, chosen in groups:
        if len(chosen):
            shares = 100 * np.histogram(chosen, edges)[0] / len(chosen)
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.35)
            axes.stairs(shares, edges, color=colour, label=f"{label} ({len(chosen)})")
    if stored and stored.thresholds.image_threshold is not None:
        threshold = stored.thresholds.image_threshold
        axes.axvline(threshold, color=INK, linestyle="--", label=f"threshold at {threshold:.4g}")


def training_of(place: Evaluation, row: Row) -> Training:
    """Return the training to which these results belong."""
    return Training(place.workdir, JOINT if row["joint"] else place.name, place.seed)


def _path(place: Evaluation, name: str, kind: str) -> Path:
    return Workdir(place.workdir).figures / f"{place.label}-{name}.{kind}"


def inline_figures(place: Evaluation, prefix: str) -> list[str]:
    """Return the SVG element of each complete figure file; ids begin with `prefix`."""
    paths = {name: _path(place, name, "svg") for name in _FIGURES}
    files = {n: path.read_text("utf-8", "replace") for n, path in paths.items() if path.exists()}
    return [_element(f, f"{prefix}-{n}") for n, f in files.items() if f.endswith("</svg>\n")]


def _element(svg: str, prefix: str) -> str:
    # A title would be shown wherever the mouse points, so it becomes a label.
    head = re.compile(r".*?<svg(.*?)<title>(.*?)</title>.*?</metadata>", re.DOTALL)
    svg = head.sub(r'<svg role="img" aria-label="\2"\1', svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg
