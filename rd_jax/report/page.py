"""The report of a run as one page that needs nothing else: WORKDIR/report.html."""

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rd_jax.method.metrics import METRICS
from rd_jax.report import cards, figures, gallery
from rd_jax.report.tables import per_cent, protocol
from rd_jax.store import checkpoint
from rd_jax.store.results import (
    TIMING,
    Result,
    mean_row,
    over_seeds,
    read_results,
    rows_of_categories,
)
from rd_jax.store.rows import Row, read_rows
from rd_jax.store.workdir import Workdir
from rd_jax.system.files import write_whole

_MAX_IMAGES = 1500  # in all; a page with more takes long to open
_PACKAGES = ("rd-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")
_TEMPLATES = Environment(
    loader=PackageLoader("rd_jax.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_page(workdir: Path) -> None:
    """Writes WORKDIR/report.html, and its figures as PNG and PDF into WORKDIR/figures.

    Reads what the trainings left in `workdir`: results.json, metrics.jsonl, evaluation.npz and
    the checkpoints' metadata. Of what is missing the page says so.
    """
    run, found = Workdir(workdir), read_results(workdir)
    trained = [result for results in found.values() for result in results]
    page = _TEMPLATES.get_template("page.html").render(
        title=f"Reverse Distillation: {workdir.resolve().name}",
        protocol=protocol(rows_of_categories(found)).splitlines(),
        table=_table(found, trained),
        sections=[_section(result, run, len(trained)) for result in trained],
        settings=_settings(trained),
        versions={"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
    )
    # A file's name may hold bytes that are no text.
    write_whole(run.page, page.encode(errors="replace"))


def _table(found: dict[str, list[Result]], trained: Sequence[Result]) -> dict[str, Any]:
    """A row for each training, for each category of several seeds, and for the mean."""
    names = [name for name in METRICS if any(result.row[name] is not None for result in trained)]
    rows = []

    def add(label: str, row: Row, link: int | None = None) -> None:
        rows.append({"label": label, "link": link, "cells": [per_cent(row, n) for n in names]})

    link = 0
    for category, results in found.items():
        for result in results:
            add(result.training.name, result.row, link)
            link += 1
        if len(results) > 1:
            summary = over_seeds([result.row for result in results])
            add(f"{category}, {len(results)} seeds", summary)
    add("mean", mean_row(found))
    return {"header": [METRICS[name].label for name in names], "rows": rows}


def _section(result: Result, run: Workdir, num_trainings: int) -> dict[str, Any]:
    """Figures and gallery of one training."""
    training, row = result
    evaluation = gallery.read_evaluation(training.evaluation)
    drawn = figures.draw(evaluation, row, read_rows(training.metrics))
    figures.write_figures(drawn, run.figure(training))
    svgs = [
        (says, Markup(figures.inline_svg(figure, f"{training.name}-{name}")))
        for name, (figure, says) in drawn.items()
    ]
    limit = max(_MAX_IMAGES // num_trainings, 1)
    return {
        "name": training.name,
        "speed": _speed(row),
        "figures": svgs,
        "is_evaluated": evaluation is not None,
        "gallery": cards.gallery(evaluation, limit)
        if evaluation is not None and len(evaluation.scores)
        else None,
        "is_open": num_trainings == 1,
    }


def _speed(row: Row) -> str:
    parts = []
    if row["train_seconds"] is not None:
        parts.append(f"{row['num_steps']} steps in {row['train_seconds']:.0f} s")
    if row["images_per_second"] is not None:
        parts.append(f"{row['images_per_second']:.1f} training images/s")
    if row["eval_seconds"] is not None:
        parts.append(f"evaluated in {row['eval_seconds']:.1f} s")
    return ", ".join([*parts, row["device"]])


def _settings(trained: Sequence[Result]) -> dict[str, str]:
    """Configs and facts of all trainings; where they differ, all that there are."""
    values: dict[str, list[str]] = {}
    for training, row in trained:
        metadata = checkpoint.latest_metadata(training.checkpoints)
        # What was evaluated with, if it is not what was trained with.
        settings = (metadata["config"] if metadata else {}) | dict(row)
        for name, value in settings.items():
            if name not in METRICS and name not in TIMING:
                seen = values.setdefault(name, [])
                seen += [] if json.dumps(value) in seen else [json.dumps(value)]
    return {name: ", ".join(seen) for name, seen in values.items()}
