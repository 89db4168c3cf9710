"""The report of a run as one page that needs nothing else: WORKDIR/report.html."""

import base64
import hashlib
import importlib.metadata
import itertools
import json
import platform
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rd_jax.data.decode import png
from rd_jax.method.metrics import METRICS
from rd_jax.method.thresholds import Thresholds
from rd_jax.report import figures
from rd_jax.report.figures import training_of
from rd_jax.report.gallery import (
    Evaluated,
    examples,
    informative,
    kind_of,
    read_evaluation,
    wrongness,
)
from rd_jax.report.heatmap import coloured
from rd_jax.report.tables import per_cent, protocol, warnings_of
from rd_jax.report.words import rate_in_words, scale_in_words
from rd_jax.store import checkpoint
from rd_jax.store.results import TIMING, Result, mean_row, over_seeds, rows_of_categories
from rd_jax.store.rows import Row
from rd_jax.store.thresholds import read_thresholds
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


def write_page(workdir: Path, found: dict[str, list[Result]]) -> None:
    """Write WORKDIR/report.html of the results of a run, as of `read_results`.

    Read what evaluations and trainings left besides: evaluation.npz, thresholds.json, figures,
    metrics.jsonl and the checkpoints' metadata. Of what is missing the page says so.
    """
    results = [result for of_category in found.values() for result in of_category]
    defined = {name for name in METRICS if any(row[name] is not None for _, row in results)}
    rows = rows_of_categories(found)
    script = _TEMPLATES.get_template("page.js").render()
    page = _TEMPLATES.get_template("page.html").render(
        title=f"Reverse Distillation: {workdir.resolve().name}",
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        warnings=warnings_of(rows),
        protocol=protocol(rows),
        metrics={name: metric.label for name, metric in METRICS.items() if name in defined},
        table=list(_table(found)),
        per_cent=per_cent,
        sections=[_section(i, r, _MAX_IMAGES // len(results)) for i, r in enumerate(results)],
        settings=_settings(results),
        versions={"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
    )
    # A file's name may hold bytes that are no text.
    write_whole(Workdir(workdir).page, page.encode(errors="replace"))


def _table(found: dict[str, list[Result]]) -> Iterator[tuple[str, int | None, Row]]:
    """Yield label, number of the section and row of each result, each over seeds, and the mean."""
    numbers = itertools.count()
    for category, results in found.items():
        for place, row in results:
            yield place.label, next(numbers), row
        if len(results) > 1:
            yield f"{category}, {len(results)} seeds", None, over_seeds([row for _, row in results])
    yield "mean", None, mean_row(found)


def _section(number: int, result: Result, max_images: int) -> dict[str, Any]:
    """Return what the page says of the result of this number."""
    place, row = result
    evaluated, thresholds = read_evaluation(place.shown), _thresholds(result)
    drawn = figures.inline_figures(place, row, thresholds, str(number))
    return {
        "name": place.label,
        "speed": [text.format_map(row) for name, text in _SPEED.items() if row[name] is not None],
        "figures": [(says, Markup(svg)) for says, svg in drawn],
        "evaluated": evaluated,
        "gallery": evaluated and _gallery(evaluated, thresholds, max(max_images, 1)),
    }


def _thresholds(result: Result) -> Thresholds | None:
    """Return the thresholds of the checkpoint that these results are of."""
    checksum = result.row.get("checkpoint")
    stored = None if checksum is None else read_thresholds(result.evaluation.thresholds, checksum)
    return stored and stored.thresholds


def _gallery(evaluated: Evaluated, thresholds: Thresholds | None, limit: int) -> dict[str, Any]:
    """Return what the page shows of at most `limit` of the M test images, worst errors first."""
    scores, labels, shown = evaluated.scores, evaluated.labels, evaluated.shown
    threshold = thresholds.image_threshold if thresholds else None
    called = labels if threshold is None else scores > threshold  # no decision, no error
    missed, false_alarms = labels & ~called, called & ~labels
    errors = wrongness(scores, labels, thresholds)[shown]

    def card(k: int) -> dict[str, Any]:
        """Return one image of those kept, with its map and its mask."""
        i = shown[k]
        return {
            "name": str(evaluated.names[i]),
            "score": str(scores[i]),
            "label": "anomalous" if labels[i] else "normal",
            "kind": kind_of(str(evaluated.names[i])),
            "error": "missed" if missed[i] else "false alarm" if false_alarms[i] else "",
            "image": _uri(evaluated.images[k], "jpeg"),
            "heat": _uri(evaluated.heatmaps[k], "jpeg"),
            "mask": _uri(evaluated.masks[k], "png") if len(evaluated.masks) else "",
        }

    grey = np.full((8, 128, 3), 128, np.uint8)
    ramp = np.tile(np.uint8(np.arange(0, 256, 2)), (8, 1))
    low_is, high_is = scale_in_words(thresholds)
    return {
        "threshold": threshold,
        "rate": rate_in_words(thresholds) if thresholds else "",
        "num_missed": missed.sum(),
        "num_false_alarms": false_alarms.sum(),
        "low_is": low_is,
        "high_is": high_is,
        "scale": _uri(png(coloured(grey, ramp)), "png"),  # what the colours mean
        "examples": [
            card(k) for k in examples(evaluated.names[shown], labels[shown], scores[shown], errors)
        ],
        "cards": [card(k) for k in informative(errors, scores[shown], limit)],
    }


def _uri(file: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"


def _settings(results: Sequence[Result]) -> dict[str, str]:
    """Return configs and facts of all results; where they differ, all that there are."""
    metadata_of = cache(checkpoint.latest_metadata)  # categories of a joint training share it
    values: dict[str, dict[str, None]] = {}
    for place, row in results:
        metadata = metadata_of(training_of(place, row).checkpoints) or {"config": {}}
        # What was evaluated with, if it is not what was trained with.
        for name, value in {**metadata["config"], **row}.items():
            if name not in METRICS and name not in TIMING:
                values.setdefault(name, {})[json.dumps(value)] = None
    return {name: ", ".join(seen) for name, seen in values.items()}
