"""The report of a run as one page that needs nothing else: WORKDIR/report.html."""

import importlib.metadata
import importlib.resources
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from rd_jax import cards, checkpoint, figures, gallery, report, results
from rd_jax.files import write_whole
from rd_jax.results import METRIC_NAMES, Row

FILE = "report.html"
_MAX_IMAGES = 1500  # in all; a page with more takes long to open
_PACKAGES = ("rd-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")
_TIMING = ("train_seconds", "eval_seconds", "images_per_second")


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
        _protocol(results.rows_of_categories(found, workdir)),
        _results_table(found, trainings),
        *(_section(i, training, workdir, len(trainings)) for i, training in enumerate(trainings)),
        _settings(trainings),
    ]
    template = importlib.resources.files("rd_jax").joinpath("page.html").read_text("utf-8")
    title = f"Reverse Distillation: {escape(workdir.resolve().name)}"
    page = Template(template).substitute(title=title, body="\n".join(body))
    # A file's name may hold bytes that are no text.
    write_whole(workdir / FILE, page.encode(errors="replace"))


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

    for category, rows in found.items():
        for i, training in enumerate(trainings):
            if training.row["category"] == category:
                add(f'<a href="#training-{i}">{escape(training.name)}</a>', training.row, "")
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
        limit = max(_MAX_IMAGES // num_trainings, 1)
        seen = cards.gallery_html(evaluation, limit, is_open=num_trainings == 1)
    return (
        f'<section><h2 id="training-{i}">{escape(training.name)}</h2>'
        f'<p class="muted">{_speed(training.row)}</p><div class="figures">{svgs}</div>'
        f"{seen}</section>"
    )


def _speed(row: Row) -> str:
    parts = [f"evaluated in {row['eval_seconds']:.1f} s", escape(row["device"])]
    if row["train_seconds"] is not None:
        parts.insert(0, f"{row['num_steps']} steps in {row['train_seconds']:.0f} s")
    if row["images_per_second"] is not None:
        parts.insert(1, f"{row['images_per_second']:.1f} training images/s")
    return ", ".join(parts)


def _settings(trainings: Sequence[_Training]) -> str:
    """Configs and facts of all trainings, and the versions that wrote this page."""
    values: dict[str, list[Any]] = {}
    for training in trainings:
        metadata = checkpoint.latest_metadata(training.folder / checkpoint.FOLDER)
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
        f'<div class="settings"><section><h2>Config</h2>{settings_table}</section>'
        f"<section><h2>Versions</h2><p>Of the packages that wrote this page.</p>{_pairs(versions)}"
        "</section></div>"
    )


def _pairs(values: Mapping[str, str]) -> str:
    lines = (
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in values.items()
    )
    return f'<table class="config"><tbody>{"".join(lines)}</tbody></table>'
