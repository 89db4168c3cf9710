"""Figures of one training, for the report page and for papers."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rd_jax.report.gallery import MAX_FPR, Evaluation, calibration_of
from rd_jax.report.tables import per_cent
from rd_jax.store.rows import Row
from rd_jax.system.files import write_whole

# In a page the colours are its variables, so that they suit its background, light or dark.
INK, LINE, NORMAL, ANOMALOUS = "#1c2430", "#c9ced6", "#1f6fb2", "#c2410c"
_VARIABLES = {INK: "ink", LINE: "line", NORMAL: "normal", ANOMALOUS: "anomalous"}
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "rd_jax",
}


def draw(
    evaluation: Evaluation | None, row: Row, training_rows: Sequence[Row]
) -> dict[str, tuple[Figure, str]]:
    """Name -> figure and what it shows, of what there is to draw.

    `row` are the results, `training_rows` the lines of metrics.jsonl.
    """
    figures = {}
    with rc_context(_STYLE):
        if evaluation is not None:
            figures = {
                "roc": _roc(evaluation, row),
                "pro": _pro(evaluation, row),
                "scores": _scores(evaluation),
            }
        figures["loss"] = _loss(training_rows)
    return {name: drawn for name, drawn in figures.items() if drawn is not None}


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure((3.6, 2.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    return figure, axes


def _roc(evaluation: Evaluation, row: Row) -> tuple[Figure, str] | None:
    if not len(evaluation.image_roc):
        return None
    figure, axes = _axes("false-positive rate", "true-positive rate")
    axes.plot([0, 1], [0, 1], color=LINE, linestyle=":")
    says: list[str] = []
    for name, points, colour in (
        ("image", evaluation.image_roc, NORMAL),
        ("pixel", evaluation.pixel_roc, ANOMALOUS),
    ):
        if len(points):
            label = f"{name} AUROC {per_cent(row, f'{name}_auroc')} %"
            axes.plot(*points.T, color=colour, label=label, linestyle="--" if says else "-")
            says.append(label)
    axes.legend(loc="lower right")
    return figure, f"ROC curves: {', '.join(says)}"


def _pro(evaluation: Evaluation, row: Row) -> tuple[Figure, str] | None:
    if not len(evaluation.pro):
        return None
    figure, axes = _axes("false-positive rate", "per-region overlap")
    label = f"AUPRO {per_cent(row, 'aupro')} %"
    axes.plot(*evaluation.pro.T, color=ANOMALOUS, label=label)
    axes.set(xlim=(0, MAX_FPR), ylim=(0, 1.02))
    axes.legend(loc="lower right")
    return figure, f"Per-region overlap to a false-positive rate of {MAX_FPR}: {label}"


def _scores(evaluation: Evaluation) -> tuple[Figure, str] | None:
    if not len(evaluation.scores):
        return None
    figure, axes = _axes("image score", "images of the class, %")
    edges = np.histogram_bin_edges(evaluation.scores, 30)
    says: list[str] = []
    for name, chosen, colour in (
        ("normal", ~evaluation.labels, NORMAL),
        ("anomalous", evaluation.labels, ANOMALOUS),
    ):
        if chosen.any():
            label = f"{name} ({chosen.sum()})"
            counts, _ = np.histogram(evaluation.scores[chosen], edges)
            shares = 100 * counts / chosen.sum()
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.35)
            axes.stairs(shares, edges, color=colour, linewidth=1.2, label=label)
            says.append(label)
    calibration = calibration_of(evaluation)
    if calibration and calibration.image_threshold is not None:
        axes.axvline(calibration.image_threshold, color=INK, linestyle="--", label="threshold")
        says.append(f"threshold at {calibration.image_threshold:.4g}")
    axes.legend()
    return figure, f"Image scores: {', '.join(says)}"


def _loss(training_rows: Sequence[Row]) -> tuple[Figure, str] | None:
    rows = [row for row in training_rows if "loss" in row]
    if not rows:
        return None
    figure, axes = _axes("step", "loss")
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    axes.plot(steps, losses, color=NORMAL, marker="." if len(rows) < 30 else "")
    axes.set_ylim(bottom=0)
    return figure, f"Training loss: {losses[0]:.4g} to {losses[-1]:.4g}"


def write_figures(figures: Mapping[str, tuple[Figure, str]], stem: Path) -> None:
    """Writes STEM-NAME.png and .pdf of each."""
    for name, (figure, _) in figures.items():
        for suffix, options in (
            ("png", {"dpi": 300}),
            ("pdf", {"metadata": {"CreationDate": None}}),
        ):
            file = io.BytesIO()
            with rc_context(_STYLE | {"savefig.transparent": False}):
                figure.savefig(file, format=suffix, **options)
            write_whole(stem.with_name(f"{stem.name}-{name}.{suffix}"), file.getvalue())


def inline_svg(figure: Figure, prefix: str) -> str:
    """The figure as an SVG element in the page's colours; its ids begin with `prefix`."""
    file = io.StringIO()
    with rc_context(_STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg
