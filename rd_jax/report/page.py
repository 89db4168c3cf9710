"""The report of a run as one page that needs nothing else: WORKDIR/report.html."""

import base64
import importlib.metadata
import io
import itertools
import json
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from rd_jax.method.metrics import METRICS
from rd_jax.report.gallery import (
    Evaluation,
    examples,
    informative,
    kind_of,
    read_evaluation,
    wrongness,
)
from rd_jax.report.heatmap import coloured
from rd_jax.report.promise import promise, scale_is
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
_SPEED = {
    "train_seconds": "{num_steps} steps in {train_seconds:.0f} s",
    "images_per_second": "{images_per_second:.1f} training images/s",
    "eval_seconds": "evaluated in {eval_seconds:.1f} s",
    "device": "{device}",
}
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
    defined = {name for name in METRICS if any(row[name] is not None for _, row in trained)}
    page = _TEMPLATES.get_template("page.html").render(
        title=f"Reverse Distillation: {workdir.resolve().name}",
        protocol=protocol(rows_of_categories(found)).splitlines(),
        metrics={name: metric.label for name, metric in METRICS.items() if name in defined},
        rows=list(_table(found)),
        per_cent=per_cent,
        sections=[
            _section(i, result, run, _MAX_IMAGES // len(trained))
            for i, result in enumerate(trained)
        ],
        settings=_settings(trained),
        versions={"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
    )
    # A file's name may hold bytes that are no text.
    write_whole(run.page, page.encode(errors="replace"))


def _table(found: dict[str, list[Result]]) -> Iterator[tuple[str, int | None, Row]]:
    """Label, number of the section and row of each training, each over seeds, and the mean."""
    numbers = itertools.count()
    for category, results in found.items():
        for training, row in results:
            yield training.name, next(numbers), row
        if len(results) > 1:
            yield f"{category}, {len(results)} seeds", None, over_seeds([row for _, row in results])
    yield "mean", None, mean_row(found)


def _section(number: int, result: Result, run: Workdir, max_images: int) -> dict[str, Any]:
    """Figures and gallery of the training of this number."""
    from rd_jax.report import figures  # here, since matplotlib reads the environment: see `settle`

    training, row = result
    evaluation = read_evaluation(training.evaluation)
    drawn = figures.draw(evaluation, row, read_rows(training.metrics))
    figures.write_figures(drawn, run.figure(training))
    return {
        "name": training.name,
        "speed": [text.format_map(row) for name, text in _SPEED.items() if row[name] is not None],
        "figures": [
            (says, Markup(figures.inline_svg(figure, f"{number}-{name}")))
            for name, (figure, says) in drawn.items()
        ],
        "evaluation": evaluation,
        "gallery": evaluation and _gallery(evaluation, max(max_images, 1)),
    }


def _gallery(evaluation: Evaluation, limit: int) -> dict[str, Any]:
    """What the template shows of at most `limit` of the M test images, worst errors first."""
    calibration, stored = evaluation.calibration, evaluation.shown
    scores, labels, masks = evaluation.scores, evaluation.labels, evaluation.masks
    threshold = calibration.image_threshold if calibration else None
    called = labels if threshold is None else scores > threshold  # no decision, no error
    missed, false_alarms = labels & ~called, called & ~labels
    errors = wrongness(scores, labels, calibration)[stored]

    def card(k: int) -> dict[str, Any]:
        """One image of those stored, with its map and its mask."""
        i, image = stored[k], evaluation.images[k]
        return {
            "name": str(evaluation.names[i]),
            "score": str(scores[i]),
            "label": "anomalous" if labels[i] else "normal",
            "kind": kind_of(str(evaluation.names[i])),
            "error": "missed" if missed[i] else "false alarm" if false_alarms[i] else "",
            "image": _uri(image, "JPEG"),
            "heat": _uri(coloured(image, evaluation.strengths[k]), "JPEG"),
            "mask": _uri(masks[k], "PNG") if len(masks) else "",
        }

    grey, ramp = (
        np.full((8, 128, 3), 128, np.uint8),
        np.tile(np.uint8(np.arange(0, 256, 2)), (8, 1)),
    )
    low_is, high_is = scale_is(calibration)
    return {
        "promise": promise(calibration) if calibration else "",
        "low_is": low_is,
        "high_is": high_is,
        "num_missed": missed.sum(),
        "num_false_alarms": false_alarms.sum(),
        "scale": _uri(coloured(grey, ramp), "PNG"),  # what the colours mean
        "examples": [
            card(k)
            for k in examples(evaluation.names[stored], labels[stored], scores[stored], errors)
        ],
        "cards": [card(k) for k in informative(errors, scores[stored], limit)],
    }


def _uri(pixels: np.ndarray, kind: str) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=85)  # which a PNG has not
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _settings(trained: Sequence[Result]) -> dict[str, str]:
    """Configs and facts of all trainings; where they differ, all that there are."""
    values: dict[str, dict[str, None]] = {}
    for training, row in trained:
        metadata = checkpoint.latest_metadata(training.checkpoints) or {"config": {}}
        # What was evaluated with, if it is not what was trained with.
        for name, value in {**metadata["config"], **row}.items():
            if name not in METRICS and name not in TIMING:
                values.setdefault(name, {})[json.dumps(value)] = None
    return {name: ", ".join(seen) for name, seen in values.items()}
