"""Write the report of a run as one page that needs no other file: WORKDIR/report.html."""

import base64
import hashlib
import importlib.metadata
import json
import platform
import shlex
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from rd_jax.data.decode import png
from rd_jax.method.metrics import METRICS
from rd_jax.method.thresholds import Thresholds
from rd_jax.report.figures import inline_figures, training_of
from rd_jax.report.gallery import Evaluated, examples, informative, read_evaluation, wrongness
from rd_jax.report.heatmap import coloured, drawn
from rd_jax.report.tables import TEMPLATES, columns, per_cent, protocol, warnings_of
from rd_jax.report.words import answer
from rd_jax.store import checkpoint
from rd_jax.store.results import TIMING, Result, mean_row, rows_of_categories
from rd_jax.store.rows import Row
from rd_jax.store.thresholds import read_thresholds
from rd_jax.store.workdir import Workdir
from rd_jax.system.files import write_whole

_MAX_IMAGES = 1000  # in all; a page with more takes long to open
_PACKAGES = ("rd-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


def write_page(workdir: Path, found: dict[str, list[Result]]) -> None:
    """Write WORKDIR/report.html from the results of a run, given by `read_results`.

    Read the other files of evaluations and trainings: evaluation.npz, thresholds.json, figures,
    metrics.jsonl and the checkpoints' metadata. The page says which of them are missing.
    """
    results = [result for of_category in found.values() for result in of_category]
    rows = rows_of_categories(found)
    table: list[tuple[str, int | None, Row]] = []  # label, number of the section, figures
    sections: list[dict[str, Any]] = []
    for of_category, row in zip(found.values(), rows, strict=True):
        for result in of_category:
            table.append((result.evaluation.label, len(sections), result.row))
            sections.append(_section(len(sections), result, _MAX_IMAGES // len(results)))
        if len(of_category) > 1:
            table.append((f"{row['category']}, {len(of_category)} seeds", None, row))
    if len(rows) > 1:
        table.append(("mean", None, mean_row(found)))
    first_column, metrics = columns(rows)
    page = TEMPLATES.get_template("page.html").render(
        title=f"Reverse Distillation: {workdir.resolve().name}",
        script_hash=script_hash(),
        answer=answer([result.row for result in results]),
        warnings=warnings_of(rows),
        protocol=protocol(rows),
        first_column=first_column,
        metrics=metrics,
        table=table,
        per_cent=per_cent,
        sections=sections,
        scale=scale_picture(),
        settings=_settings(results),
        versions={"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
    )
    # A file's name may hold bytes that are no text.
    write_whole(Workdir(workdir).page, page.encode(errors="replace"))


def _section(number: int, result: Result, max_images: int) -> dict[str, Any]:
    """Return the values of the page's section about this result."""
    place, row = result
    evaluated = read_evaluation(place.shown)
    stored = read_thresholds(place.thresholds, row.get("checkpoint", -1))
    thresholds = stored and stored.thresholds
    return {
        "name": place.label,
        "row": row,
        "answer": answer([row]),
        "predict": shlex.join(["python", "-m", "rd_jax.predict", "--workdir", str(place.folder)]),
        "figures": inline_figures(place, str(number)),
        "evaluated": evaluated,
        "thresholds": thresholds,
    } | (_gallery(evaluated, thresholds, max(max_images, 1)) if evaluated else {})


def _gallery(evaluated: Evaluated, thresholds: Thresholds | None, limit: int) -> dict[str, Any]:
    """Return the page's values for at most `limit` of M test images, worst errors first."""
    scores, labels, shown = evaluated.scores, evaluated.labels, evaluated.shown
    threshold = thresholds and thresholds.image_threshold
    ends = (thresholds.map_low, thresholds.map_high) if thresholds else (*evaluated.map_range,)

    def card(name: Any, score: Any, label: Any, image: Any, levels: np.ndarray) -> dict[str, Any]:
        above = threshold is not None and score > threshold
        called = label if threshold is None else above  # without a decision there is no error
        heatmap = drawn(image, levels * evaluated.map_unit, ends, above)
        return {
            "name": str(name),
            "score": score,
            "label": "anomalous" if label else "normal",
            "error": "" if called == label else "missed" if label else "false alarm",
            "image": _uri(image, "jpeg"),
            "heatmap": _uri(heatmap, "jpeg"),
            "mask": "",
        }

    of_shown = evaluated.names[shown], scores[shown], labels[shown]
    cards = [*map(card, *of_shown, evaluated.images, evaluated.maps)]
    for of_image, mask in zip(cards, evaluated.masks, strict=False):  # there may be none
        of_image["mask"] = _uri(mask, "png")
    held_out = map(
        card,
        *(evaluated.held_out_names, evaluated.held_out_scores, repeat(False)),
        *(evaluated.held_out_images, evaluated.held_out_maps),
    )
    errors, places = wrongness(scores, labels, thresholds), {i: k for k, i in enumerate(shown)}
    clear = examples(evaluated.names.tolist(), labels, scores, errors)
    return {
        "ends": ends,
        "examples": [cards[places[i]] for i in clear if i in places],
        "cards": [cards[k] for k in informative(errors[shown], limit)],
        "held_out": [*held_out],
    }


def script_hash() -> str:
    """Return the hash that lets the page's own script run, and no other script."""
    script = TEMPLATES.get_template("page.js").render()
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def scale_picture() -> str:
    """Return a picture of the heatmaps' colours."""
    ramp = np.tile(np.uint8(np.arange(0, 256, 2)), (8, 1))
    return _uri(png(coloured(np.full((8, 128, 3), 128, np.uint8), ramp)), "png")


def _uri(file: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"


def _settings(results: Sequence[Result]) -> dict[str, str]:
    """Return configs and facts of all results. If they differ, return all values."""
    values: dict[str, dict[str, None]] = {}
    for place, row in results:
        metadata = checkpoint.latest_metadata(training_of(place, row).checkpoints)
        # The row has the values of the evaluation, which may differ from those of training.
        for name, value in {**(metadata or {"config": {}})["config"], **row}.items():
            if name not in METRICS and name not in TIMING:
                values.setdefault(name, {})[json.dumps(value)] = None
    return {name: ", ".join(seen) for name, seen in values.items()}
