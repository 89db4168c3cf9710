"""Figures of an evaluation: kept as files for papers, and shown by the page in its colours."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from rd_jax.method.metrics import MAX_FPR
from rd_jax.method.thresholds import Thresholds
from rd_jax.report.gallery import Evaluated, read_evaluation
from rd_jax.report.tables import per_cent
from rd_jax.store.rows import Row, read_rows
from rd_jax.store.workdir import JOINT, Evaluation, Training, Workdir
from rd_jax.system.files import write_whole

if TYPE_CHECKING:  # it takes a while to import, and a page of kept figures needs none of it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FIGURES = {  # what they show, and their axes
    "roc": ("ROC curves", "false-positive rate", "true-positive rate"),
    "pro": (
        f"Per-region overlap to a false-positive rate of {MAX_FPR}",
        "false-positive rate",
        "per-region overlap",
    ),
    "scores": ("Image scores", "image score", "images of the class, %"),
    "loss": ("Training loss", "step", "loss"),
}
# In the page colours are its variables, so that they suit its background, light or dark.
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


def write_figures(place: Evaluation, row: Row, thresholds: Thresholds | None) -> None:
    """Write WORKDIR/figures/LABEL-NAME.svg, .png and .pdf of each figure of an evaluation.

    Read its evaluation.npz and its training's metrics.jsonl; `row` are its results. Remove the
    figures that there is nothing to draw of any more.
    """
    from matplotlib.style import context

    training_rows = read_rows(training_of(place, row).metrics)
    with context(_STYLE, after_reset=True):  # whatever a matplotlibrc says
        figures = draw(read_evaluation(place.shown), thresholds, row, training_rows)
        for name in _FIGURES:
            for kind in ("svg", "png", "pdf"):
                path = _path(place, name, kind)
                if name in figures:
                    write_whole(path, _saved(figures[name], kind))
                else:
                    path.unlink(missing_ok=True)


def draw(
    evaluated: Evaluated | None,
    thresholds: Thresholds | None,
    row: Row,
    training_rows: Sequence[Row],
) -> dict[str, "Figure"]:
    """Return the figures that there is something to draw of; their labels say what they show."""
    from matplotlib.figure import Figure

    figures = {name: Figure((3.6, 2.7), layout="constrained") for name in _FIGURES}
    axes = {n: figures[n].add_subplot(xlabel=x, ylabel=y) for n, (_, x, y) in _FIGURES.items()}
    if evaluated is not None:
        if len(evaluated.image_roc):
            _draw_roc(axes["roc"], evaluated, row)
        if len(evaluated.pro):
            label = f"AUPRO {per_cent(row, 'aupro')} %"
            axes["pro"].plot(*evaluated.pro.T, color=ANOMALOUS, label=label)
            axes["pro"].set(xlim=(0, MAX_FPR), ylim=(0, 1.02))
        if len(evaluated.scores):
            _draw_scores(axes["scores"], evaluated, thresholds)
    for name, figure in figures.items():
        if labels := axes[name].get_legend_handles_labels()[1]:
            axes[name].legend(loc="best" if name == "scores" else "lower right")
            figure.set_label(f"{_FIGURES[name][0]}: {', '.join(labels)}")
    if losses := [(row["step"], row["loss"]) for row in training_rows if "loss" in row]:
        marker = "." if len(losses) < 30 else ""
        axes["loss"].plot(*np.array(losses).T, color=NORMAL, marker=marker)
        axes["loss"].set_ylim(bottom=0)
        figures["loss"].set_label(f"Training loss: {losses[0][1]:.4g} to {losses[-1][1]:.4g}")
    return {name: figure for name, figure in figures.items() if axes[name].has_data()}


def _draw_roc(axes: "Axes", evaluated: Evaluated, row: Row) -> None:
    axes.plot([0, 1], [0, 1], color=LINE, linestyle=":")
    for name, points, colour, line in (
        ("image", evaluated.image_roc, NORMAL, "-"),
        ("pixel", evaluated.pixel_roc, ANOMALOUS, "--"),
    ):
        if len(points):
            label = f"{name} AUROC {per_cent(row, f'{name}_auroc')} %"
            axes.plot(*points.T, color=colour, linestyle=line, label=label)


def _draw_scores(axes: "Axes", evaluated: Evaluated, thresholds: Thresholds | None) -> None:
    scores = evaluated.scores.astype(np.float64)  # 30 bins need not fit between two float32
    edges = np.histogram_bin_edges(scores, 30)
    for name, chosen, colour in (
        ("normal", ~evaluated.labels, NORMAL),
        ("anomalous", evaluated.labels, ANOMALOUS),
    ):
        if chosen.any():
            counts, _ = np.histogram(scores[chosen], edges)
            shares, label = 100 * counts / chosen.sum(), f"{name} ({chosen.sum()})"
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.35)
            axes.stairs(shares, edges, color=colour, linewidth=1.2, label=label)
    if thresholds and thresholds.image_threshold is not None:
        label = f"threshold at {thresholds.image_threshold:.4g}"
        axes.axvline(thresholds.image_threshold, color=INK, linestyle="--", label=label)


def _saved(figure: "Figure", kind: str) -> bytes:
    options: dict[str, dict[str, Any]] = {
        "svg": dict(transparent=True, metadata={"Date": None, "Title": figure.get_label()}),
        "png": dict(dpi=300),
        "pdf": dict(metadata={"CreationDate": None}),
    }
    file = io.BytesIO()
    figure.savefig(file, format=kind, **options[kind])
    return file.getvalue()


def training_of(place: Evaluation, row: Row) -> Training:
    """Return the training that was evaluated with these results."""
    return Training(place.workdir, JOINT if row["joint"] else place.name, place.seed)


def _path(place: Evaluation, name: str, kind: str) -> Path:
    return Workdir(place.workdir).figures / f"{place.label}-{name}.{kind}"


def inline_figures(
    place: Evaluation, row: Row, thresholds: Thresholds | None, prefix: str
) -> list[tuple[str, str]]:
    """Return what each figure shows and its SVG element, in the page's colours.

    Draw the figures anew if one is damaged or none is there. Their ids begin with `prefix`.
    """
    paths = {name: _path(place, name, "svg") for name in _FIGURES}

    def kept() -> list[tuple[str, str] | None]:
        return [_element(p, f"{prefix}-{name}") for name, p in paths.items() if p.exists()]

    if not (found := kept()) or None in found:
        write_figures(place, row, thresholds)
        found = kept()
    return [element for element in found if element]


def _element(path: Path, prefix: str) -> tuple[str, str] | None:
    try:
        svg = path.read_text("utf-8")
        title = ElementTree.fromstring(svg).findtext("{http://www.w3.org/2000/svg}title", "")
    except (UnicodeDecodeError, ElementTree.ParseError):
        return None
    svg = svg[svg.index("<svg") :]
    # A title would be shown wherever the mouse points.
    svg = re.sub(r"<metadata>.*?</metadata>|<title>.*?</title>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return title, svg
