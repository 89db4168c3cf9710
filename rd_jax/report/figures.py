"""Figures of one training, for the report page and for papers."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context

from rd_jax.report.gallery import MAX_FPR, Evaluation
from rd_jax.report.tables import per_cent
from rd_jax.store.rows import Row
from rd_jax.system.files import write_whole

# In a page the colours are its variables, so that they suit its background, light or dark.
INK, LINE, NORMAL, ANOMALOUS = "#1c2430", "#c9ced6", "#1f6fb2", "#c2410c"
_VARIABLES = {INK: "ink", LINE: "line", NORMAL: "normal", ANOMALOUS: "anomalous"}
_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
_STYLE: dict[Any, Any] = dict.fromkeys(_INKED, INK) | {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "rd_jax",
}
_Drawn = tuple[Figure, str]
_styled = context(_STYLE, after_reset=True)  # whatever a matplotlibrc says


@_styled
def draw(
    evaluation: Evaluation | None, row: Row, training_rows: Sequence[Row]
) -> dict[str, tuple[Figure, str]]:
    """Name -> figure and what it shows, of what there is to draw.

    `row` are the results, `training_rows` the lines of metrics.jsonl.
    """
    figures = {}
    if evaluation is not None and len(evaluation.image_roc):
        figures["roc"] = _roc(evaluation, row)
    if evaluation is not None and len(evaluation.pro):
        figures["pro"] = _pro(evaluation, row)
    if evaluation is not None and len(evaluation.scores):
        figures["scores"] = _scores(evaluation)
    if losses := [(row["step"], row["loss"]) for row in training_rows if "loss" in row]:
        figures["loss"] = _loss(np.array(losses))
    return figures


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure((3.6, 2.7), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    return figure, axes


def _with_legend(figure: Figure, title: str, **place: Any) -> _Drawn:
    """What the figure shows is its title and what its legend lists."""
    legend = figure.axes[0].legend(**place)
    return figure, f"{title}: {', '.join(text.get_text() for text in legend.get_texts())}"


def _roc(evaluation: Evaluation, row: Row) -> _Drawn:
    figure, axes = _axes("false-positive rate", "true-positive rate")
    axes.plot([0, 1], [0, 1], color=LINE, linestyle=":")
    for name, points, colour, line in (
        ("image", evaluation.image_roc, NORMAL, "-"),
        ("pixel", evaluation.pixel_roc, ANOMALOUS, "--"),
    ):
        if len(points):
            label = f"{name} AUROC {per_cent(row, f'{name}_auroc')} %"
            axes.plot(*points.T, color=colour, linestyle=line, label=label)
    return _with_legend(figure, "ROC curves", loc="lower right")


def _pro(evaluation: Evaluation, row: Row) -> _Drawn:
    figure, axes = _axes("false-positive rate", "per-region overlap")
    axes.plot(*evaluation.pro.T, color=ANOMALOUS, label=f"AUPRO {per_cent(row, 'aupro')} %")
    axes.set(xlim=(0, MAX_FPR), ylim=(0, 1.02))
    title = f"Per-region overlap to a false-positive rate of {MAX_FPR}"
    return _with_legend(figure, title, loc="lower right")


def _scores(evaluation: Evaluation) -> _Drawn:
    figure, axes = _axes("image score", "images of the class, %")
    scores = evaluation.scores.astype(np.float64)  # 30 bins need not fit between two float32
    edges = np.histogram_bin_edges(scores, 30)
    for name, chosen, colour in (
        ("normal", ~evaluation.labels, NORMAL),
        ("anomalous", evaluation.labels, ANOMALOUS),
    ):
        if chosen.any():
            counts, _ = np.histogram(scores[chosen], edges)
            shares, label = 100 * counts / chosen.sum(), f"{name} ({chosen.sum()})"
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.35)
            axes.stairs(shares, edges, color=colour, linewidth=1.2, label=label)
    calibration = evaluation.calibration
    if calibration and calibration.image_threshold is not None:
        label = f"threshold at {calibration.image_threshold:.4g}"
        axes.axvline(calibration.image_threshold, color=INK, linestyle="--", label=label)
    return _with_legend(figure, "Image scores")


def _loss(losses: np.ndarray) -> _Drawn:
    """Of steps and losses [N, 2]."""
    figure, axes = _axes("step", "loss")
    axes.plot(*losses.T, color=NORMAL, marker="." if len(losses) < 30 else "")
    axes.set_ylim(bottom=0)
    return figure, f"Training loss: {losses[0, 1]:.4g} to {losses[-1, 1]:.4g}"


@_styled
def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=kind, **options)
    return file.getvalue()


def write_figures(figures: Mapping[str, tuple[Figure, str]], stem: Path) -> None:
    """Writes STEM-NAME.png and .pdf of each."""
    for name, (figure, _) in figures.items():
        path = stem.with_name(f"{stem.name}-{name}")
        write_whole(Path(f"{path}.png"), _saved(figure, "png", dpi=300))
        pdf = _saved(figure, "pdf", metadata={"CreationDate": None})
        write_whole(Path(f"{path}.pdf"), pdf)


def inline_svg(figure: Figure, prefix: str) -> str:
    """The figure as an SVG element in the page's colours; its ids begin with `prefix`, a name."""
    svg = _saved(figure, "svg", transparent=True, metadata={"Date": None}).decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg
