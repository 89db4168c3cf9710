"""The report of a run as one page that needs nothing else: WORKDIR/report.html."""

import base64
import importlib.metadata
import importlib.resources
import io
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rd_jax import checkpoint, figures, gallery, report, results
from rd_jax.calibration import Calibration
from rd_jax.heatmap import overlay
from rd_jax.results import METRIC_NAMES, Row

FILE = "report.html"
_MAX_IMAGES = 1500  # in all; a page with more takes long to open
_PACKAGES = ("rd-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")
_TIMING = ("train_seconds", "eval_seconds", "images_per_second")
_SORT = {
    "worst": "worst errors first",
    "descending": "score descending",
    "ascending": "score ascending",
    "name": "name",
}


class _Training(NamedTuple):
    row: Row
    folder: Path
    name: str  # CATEGORY or CATEGORY-seed_K


def write_page(workdir: Path) -> None:
    """Writes WORKDIR/report.html, and its figures as PNG and PDF into WORKDIR/figures.

    Reads what the trainings left in `workdir`: results.json, metrics.jsonl, evaluation.npz and
    the checkpoints' metadata. Of what is missing the page says so.
    """
    found = results.read_results(workdir)
    trainings = list(_trainings(found, workdir))
    body = [
        _protocol([training.row for training in trainings]),
        _results_table(found, trainings),
        *(_section(i, training, workdir, len(trainings)) for i, training in enumerate(trainings)),
        _settings(trainings),
    ]
    template = importlib.resources.files("rd_jax").joinpath("page.html").read_text("utf-8")
    page = Template(template).substitute(title="Reverse Distillation", body="\n".join(body))
    # A file's name may hold bytes that are no text.
    report.write_bytes(workdir / FILE, page.encode(errors="replace"))


def _trainings(found: Mapping[str, Sequence[Row]], workdir: Path) -> Iterator[_Training]:
    for category, rows in found.items():
        for row in rows:
            if results.has_seeds(rows, workdir / category):
                seed = f"seed_{row['seed']}"
                yield _Training(row, workdir / category / seed, f"{category}-{seed}")
            else:
                yield _Training(row, workdir / category, category)


def _protocol(rows: Sequence[Row]) -> str:
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(report.protocol(rows)))
    return "".join(f"<p>{line}</p>" for line in text.splitlines() if line)


def _results_table(found: Mapping[str, Sequence[Row]], trainings: Sequence[_Training]) -> str:
    """A row for each training, for each category of several seeds, and for the mean."""
    names = [name for name in METRIC_NAMES if any(t.row.get(name) is not None for t in trainings)]
    lines = []

    def add(label: str, row: Row, kind: str) -> None:
        values = (report.per_cent({name: None, **row}, name) for name in names)
        cells = "".join(f"<td>{value}</td>" for value in values)
        lines.append(f'<tr class="{kind}"><th scope="row">{label}</th>{cells}</tr>')

    for i, training in enumerate(trainings):
        add(f'<a href="#training-{i}">{escape(training.name)}</a>', training.row, "")
    for category, rows in found.items():
        if len(rows) > 1:
            add(f"{escape(category)}, {len(rows)} seeds", results.over_seeds(rows), "summary")
    add("mean", results.mean_row(list(found.values())), "summary")
    header = "".join(f'<th scope="col">{METRIC_NAMES[name]}</th>' for name in names)
    return (
        '<div class="scroll" role="region" tabindex="0" aria-label="Results"><table>'
        f'<thead><tr><th scope="col">category</th>{header}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _section(i: int, training: _Training, workdir: Path, num_trainings: int) -> str:
    """Figures and gallery of the training number `i`."""
    evaluation = gallery.read_evaluation(training.folder)
    training_rows = report.read_rows(training.folder / "metrics.jsonl")
    drawn = figures.draw(evaluation, training.row, training_rows)
    figures.write_figures(drawn, workdir / "figures" / training.name)
    svgs = "".join(
        f'<figure role="img" aria-label="{escape(says)}">'
        f"{figures.inline_svg(figure, f'{name}-{i}')}</figure>"
        for name, (figure, says) in drawn.items()
    )
    if evaluation is None:
        seen = "<p>No figures of the test images and no gallery: run once with --mode eval.</p>"
    elif not len(evaluation.scores):
        seen = "<p>There are no test images.</p>"
    else:
        seen = _gallery(evaluation, num_trainings)
    return (
        f'<section><h2 id="training-{i}">{escape(training.name)}</h2>'
        f'<div class="figures">{svgs}</div>{seen}</section>'
    )


def _gallery(evaluation: gallery.Evaluation, num_trainings: int) -> str:
    """The test images, worst errors first, each beside its map and its mask."""
    calibration = gallery.calibration_of(evaluation)
    threshold = calibration.image_threshold if calibration else None
    wrongness = gallery.wrongness(evaluation.scores, evaluation.labels, calibration)
    stored = evaluation.shown
    limit = max(_MAX_IMAGES // num_trainings, 1)
    chosen = gallery.informative(wrongness[stored], evaluation.scores[stored], limit)
    cards = [_card(evaluation, k, rank, threshold) for rank, k in enumerate(chosen)]
    buttons = "".join(
        f'<button data-key="{key}" aria-pressed="{str(key == "worst").lower()}">{label}</button>'
        for key, label in _SORT.items()
    )
    small = "small" if evaluation.images.shape[1] < 96 else ""
    return (
        f"<p>{_decisions(evaluation, calibration)}</p>"
        f"<details{' open' if num_trainings == 1 else ''}><summary>Test images: {len(chosen)} of "
        f"{len(wrongness)}</summary>{_how_chosen(len(chosen), len(wrongness))}"
        f"{_scale(evaluation, calibration)}"
        f'<div class="sort" role="group" aria-label="Order of the images">{buttons}</div>'
        f'<div class="gallery {small}">{"".join(cards)}</div></details>'
    )


def _decisions(evaluation: gallery.Evaluation, calibration: Calibration | None) -> str:
    if calibration is None or calibration.image_threshold is None:
        return (
            "There is no threshold from held-out normal images. Worst errors first means farthest "
            "on the wrong side of the threshold with the best F1 on these test images, which "
            "serves this order and nothing else."
        )
    above = evaluation.scores > calibration.image_threshold
    labels = evaluation.labels
    return (
        f"Threshold {calibration.image_threshold:.4g}, from {calibration.num_images} held-out "
        "normal images of which at most "
        f"{100 * calibration.false_positive_rate:g} % score higher: {(~above & labels).sum()} of "
        f"{labels.sum()} anomalous images are missed, {(above & ~labels).sum()} of "
        f"{(~labels).sum()} normal images are false alarms."
    )


def _how_chosen(num_chosen: int, num_images: int) -> str:
    if num_chosen == num_images:
        return ""
    return (
        f"<p>Shown are the {num_chosen // 2} worst errors, and others evenly spaced by score.</p>"
    )


def _scale(evaluation: gallery.Evaluation, calibration: Calibration | None) -> str:
    """What the colours of the overlays mean."""
    low, high = evaluation.map_range
    grey = np.full((8, 128, 3), 128, np.uint8)
    bar = overlay(grey, np.tile(np.linspace(0, 1, 128), (8, 1)), 0, 1)
    source = (
        f"set by the normal images of the {calibration.source} set"
        if calibration
        else "median and maximum of the test images' maps"
    )
    return (
        f'<p class="muted">Image, anomaly map and mask. Map: {low:.3g} '
        f'<img class="scale" src="{_uri(bar, "PNG")}" alt="from no colour over blue to red"> '
        f"{high:.3g} ({source}).</p>"
    )


def _card(evaluation: gallery.Evaluation, k: int, rank: int, threshold: float | None) -> str:
    """One image of those stored, with its map and its mask."""
    i = evaluation.shown[k]
    name, score = escape(evaluation.names[i]), evaluation.scores[i]
    is_anomalous = bool(evaluation.labels[i])
    label = "anomalous" if is_anomalous else "normal"
    image = evaluation.images[k]
    heat = overlay(image, evaluation.strengths[k], 0, 255)
    pictures = [
        f'<img src="{_uri(image, "JPEG")}" alt="{name}">',
        f'<img src="{_uri(heat, "JPEG")}" alt="anomaly map of {name}">',
    ]
    if len(evaluation.masks):
        pictures.append(f'<img src="{_uri(evaluation.masks[k], "PNG")}" alt="mask of {name}">')
    error = ""
    if threshold is not None and (score > threshold) != is_anomalous:
        error = f" <mark>{'missed' if is_anomalous else 'false alarm'}</mark>"
    return (
        f'<figure class="{label}" data-rank="{rank}" data-score="{score}" data-name="{name}">'
        f"<div>{''.join(pictures)}</div>"
        f"<figcaption>{name}<br>{score:.4g} <b>{label}</b>{error}</figcaption></figure>"
    )


def _uri(pixels: np.ndarray, kind: str) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _settings(trainings: Sequence[_Training]) -> str:
    """Configs and facts of all trainings, and the versions that wrote this page."""
    values: dict[str, list[Any]] = {}
    for training in trainings:
        metadata = checkpoint.load_metadata(training.folder / checkpoint.FOLDER)
        # What was evaluated with, if it is not what was trained with.
        settings = (metadata["config"] if metadata else {}) | dict(training.row)
        for name, value in settings.items():
            if name not in METRIC_NAMES and name not in _TIMING:
                seen = values.setdefault(name, [])
                seen += [] if value in seen else [value]
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    settings_table = _pairs({k: ", ".join(map(json.dumps, v)) for k, v in values.items()})
    return (
        f"<section><h2>Config</h2>{settings_table}"
        f"<h2>Versions</h2><p>Of the packages that wrote this page.</p>{_pairs(versions)}</section>"
    )


def _pairs(values: Mapping[str, str]) -> str:
    lines = (
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in values.items()
    )
    return f'<table class="config"><tbody>{"".join(lines)}</tbody></table>'
