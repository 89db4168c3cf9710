"""Write predictions as a page beside their heatmaps, highest scores first: OUTPUT/index.html."""

import heapq
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from rd_jax.method.thresholds import Thresholds
from rd_jax.report.page import scale_picture, script_hash
from rd_jax.report.tables import TEMPLATES
from rd_jax.store.rows import Row
from rd_jax.system.errors import printable
from rd_jax.system.files import write_whole

_MOST = 500  # pictures; a page with more takes long to open
_MOST_FAILED = 100  # images that could not be read or written


class Shown(NamedTuple):
    """The part of any number of rows that the page shows."""

    num_scored: int = 0
    num_anomalous: int = 0
    num_failed: int = 0
    highest: tuple[Row, ...] = ()  # rows with the highest scores
    failed: tuple[Row, ...] = ()
    thresholds: frozenset[float | None] = frozenset()  # thresholds of the verdicts


def with_rows(shown: Shown, rows: Iterable[Row]) -> Shown:
    """Return `shown` with more rows."""
    rows = [*rows]
    scored, failed = ([row for row in rows if row[name] is not None] for name in ("score", "error"))
    highest = heapq.nlargest(_MOST, (*shown.highest, *scored), key=lambda row: row["score"])
    return Shown(
        shown.num_scored + len(scored),
        shown.num_anomalous + sum(row["verdict"] == "anomalous" for row in scored),
        shown.num_failed + len(failed),
        tuple(highest),
        (*shown.failed, *failed)[:_MOST_FAILED],
        shown.thresholds | {row["threshold"] for row in scored},
    )


def write_predictions(folder: Path, shown: Shown, thresholds: Thresholds) -> None:
    """Write FOLDER/index.html, which links to the rows' heatmaps and embeds everything else."""
    folders = [os.path.dirname(os.path.abspath(row["file"])) for row in shown.highest]
    below = os.path.commonpath(folders) if folders else ""
    page = TEMPLATES.get_template("predictions.html").render(
        title=f"Predictions: {printable(folder.resolve().name)}",
        script_hash=script_hash(),
        scale=scale_picture(),
        ends=(thresholds.map_low, thresholds.map_high),
        thresholds=thresholds,
        earlier=sorted(shown.thresholds - {None, thresholds.image_threshold}),
        shown=shown,
        cards=[_card(row, below) for row in shown.highest],
        folder=printable(below),
        failed=[{"name": printable(row["file"]), "error": row["error"]} for row in shown.failed],
    )
    # A file's name may hold bytes that are no text.
    write_whole(folder / "index.html", page.encode(errors="replace"))


def _card(row: Row, below: str) -> dict[str, Any]:
    """Return the page's values for a row, whose file lies below this folder."""
    heatmap = row["heatmap"]
    return {
        "name": printable(os.path.relpath(row["file"], below)),
        "score": row["score"],
        "verdict": row["verdict"] or "",
        "threshold": row["threshold"],
        "num_regions": len(row.get("regions") or ()),
        "heatmap": heatmap and quote(os.fsencode(heatmap)),
    }
