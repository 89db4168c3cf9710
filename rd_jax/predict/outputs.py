"""What predictions leave on disk: rows in two tables; for each image a heatmap, a map, a mask."""

import csv
import errno
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rd_jax.data.decode import jpeg, png, read_image
from rd_jax.method.score import Fusion
from rd_jax.method.thresholds import Thresholds
from rd_jax.predict.predictor import Prediction, Unreadable, attempt
from rd_jax.report.heatmap import overlay, resized_map
from rd_jax.store.lock import held
from rd_jax.store.rows import Row, write_json
from rd_jax.system.errors import UserError
from rd_jax.system.files import check_writable, write_whole, writing

# No map has values above: distances are at most 2, at three scales. 65535 in maps of 16 bits.
_LIMITS = {"sum": 6.0, "product": 8.0}
KINDS = ("heatmap", "map", "mask")
TABLES = ("predictions.csv", "predictions.jsonl")
FOLDERS = tuple(f"{kind}s" for kind in KINDS)
COLUMNS = ("file", "score", "threshold", "verdict", *KINDS, "error")
_OF_DATA = ("train", "test", "ground_truth")  # folders of a category
# What a file system answers to a name that it does not take, or has something else under.
_OF_THE_NAME = {
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ),
    *(errno.EEXIST, errno.EISDIR, errno.ENOTDIR),
}


class Outputs(NamedTuple):
    """What to write, and where."""

    folder: Path
    thresholds: Thresholds
    heatmaps: int  # pixels of the longer side, at most; 0: none
    heatmap_format: str  # "png" or "jpg"
    maps: str | None  # "npy", "png16" or None
    fusion: Fusion  # of the maps
    masks: bool

    @property
    def take_images(self) -> bool:
        """Whether something is written that the image itself is needed for."""
        return self.heatmaps > 0 or self.masks

    def path(self, kind: str, name: str) -> str:
        """Return where in the folder the heatmap, map or mask of this image is written."""
        map_suffix = "png" if self.maps == "png16" else "npy"
        suffix = {"heatmap": self.heatmap_format, "map": map_suffix, "mask": "png"}[kind]
        return f"{kind}s/{name}.{suffix}"


def check_output(folder: Path) -> None:
    """Raise UserError if it cannot be written to, or if heatmaps in it would be taken for data."""
    real = Path(os.path.realpath(folder))
    around = [part.parent for part in (real, *real.parents) if part.name in _OF_DATA]
    for category in (*around, *real.glob("*")):
        # Path.is_dir would raise beside a folder that cannot be entered, such as lost+found.
        if category.name not in FOLDERS and os.path.isdir(category / _OF_DATA[0] / "good"):
            raise UserError(
                f"--output {folder}: what is written there would be taken for data, as those of "
                f"{category}; choose another"
            )
    for name in ("", *FOLDERS):
        check_writable(folder / name)


@contextmanager
def tables(outputs: Outputs, names: Iterable[str]) -> Iterator[Callable[[Row], None]]:
    """Begin predictions.csv and predictions.jsonl anew; yield what appends a row to both.

    What an earlier run wrote for its images, or may have for these names, is removed. An appended
    row is with the operating system, not in a buffer of this process. Raise UserError if another
    process writes to the folder, or if the disk is full, which leaves whole rows.
    """
    folder = outputs.folder
    csv_path, jsonl_path = (folder / table for table in TABLES)

    def append(row: Row) -> None:
        _append(csv_path, _csv_line(row[name] for name in COLUMNS))
        _append(jsonl_path, json.dumps(row, allow_nan=False).encode() + b"\n")

    with held(folder / ".predictions.lock") as is_free:
        if not is_free:
            raise UserError(
                f"--output {folder}: another process writes predictions there; wait for it to end, "
                "or choose another folder"
            )
        _remove_earlier(outputs, names)
        # Where a table is a link, that is replaced: what it leads to is not of this folder.
        write_whole(csv_path, _csv_line(COLUMNS))
        write_whole(jsonl_path, b"")
        if outputs.maps == "png16":  # how to get their values back
            scale = {"value": "pixel * scale", "scale": _LIMITS[outputs.fusion] / 65535}
            write_json(folder / "maps" / "scale.json", scale)
        yield append


def _remove_earlier(outputs: Outputs, names: Iterable[str]) -> None:
    """Remove what the rows of an earlier run name, and what has the names that are written now.

    Nothing but files in FOLDERS is removed, whatever the rows say.
    """
    found = [outputs.path(kind, name) for name in names for kind in KINDS] + ["maps/scale.json"]
    with suppress(OSError, ValueError, AttributeError):  # there are no rows, or half a one
        for line in (outputs.folder / "predictions.jsonl").read_text("utf-8").splitlines():
            found += map(str, filter(None, map(json.loads(line).get, KINDS)))
    for path in map(Path, found):
        if path.parts and path.parts[0] in FOLDERS and ".." not in path.parts:
            with suppress(OSError, ValueError):  # it is not there, a folder, or no name at all
                (outputs.folder / path).unlink()


def write_images(outputs: Outputs, result: Prediction | Unreadable, name: str) -> Row:
    """Write what was asked for of one image, named after `name`; return its row.

    Paths in the row are relative to the outputs' folder. A mask has the size of the image, and a
    heatmap, unless it is to be smaller; for them the image is read again, if the result does not
    have it. What keeps an output from being written is the row's error if it lies in its name.
    Raise UserError for other reasons, such as a full disk.
    """
    row = dict.fromkeys(COLUMNS) | {"file": _as_text(result.path)}
    if isinstance(result, Prediction) and result.image is None and outputs.take_images:
        read = attempt(lambda path: np.asarray(read_image(path)), result.path)
        result = read if isinstance(read, Unreadable) else result._replace(image=read)
    if isinstance(result, Unreadable):
        return row | {"error": result.reason}
    row |= {"score": result.score, "threshold": outputs.thresholds.image_threshold}
    if result.is_anomalous is not None:
        row["verdict"] = "anomalous" if result.is_anomalous else "normal"
    for kind, content in _contents(outputs, result):
        path = outputs.path(kind, name)
        try:
            if os.path.lexists(outputs.folder / path):
                raise UserError(
                    f"{path} is there: the name of another image is the same on this disk"
                )
            write_whole(outputs.folder / path, content)
            row[kind] = path
        except UserError as error:
            if getattr(error.__cause__, "errno", errno.EEXIST) not in _OF_THE_NAME:
                raise
            row["error"] = str(error)
    return row


def _as_text(path: Path) -> str:
    """Return a path in a form that no spreadsheet takes for a formula."""
    return f"./{path}" if str(path).startswith(tuple("=+-@\t\r")) else str(path)


def _contents(outputs: Outputs, result: Prediction) -> Iterator[tuple[str, bytes]]:
    """Yield which kind of output each file is, and what is in it."""
    thresholds, image, anomaly_map = outputs.thresholds, result.image, result.anomaly_map
    if image is not None and outputs.heatmaps:
        shown = Image.fromarray(image)
        shown.thumbnail((outputs.heatmaps, outputs.heatmaps), Image.Resampling.BILINEAR)
        scale = thresholds.map_low, thresholds.map_high
        encode = png if outputs.heatmap_format == "png" else jpeg
        yield "heatmap", encode(overlay(np.asarray(shown), anomaly_map, *scale))
    if outputs.maps == "npy":
        file = io.BytesIO()
        np.save(file, anomaly_map)
        yield "map", file.getvalue()
    elif outputs.maps == "png16":
        pixels = np.clip(anomaly_map / _LIMITS[outputs.fusion], 0, 1) * 65535
        yield "map", png(np.round(pixels).astype(np.uint16))
    if image is not None and outputs.masks:
        mask = resized_map(anomaly_map, image.shape[:2]) > thresholds.pixel_threshold
        mask &= bool(result.is_anomalous)  # what is normal has no anomalous pixel
        yield "mask", png(np.uint8(255) * mask)


def _csv_line(values: Iterable[Any]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue().encode("utf-8", "surrogateescape")  # file names may be any bytes


def _append(path: Path, line: bytes) -> None:
    """Append all of it, or nothing."""
    with writing(path), path.open("ab", buffering=0) as file:
        start = file.tell()
        try:
            while line:
                line = line[file.write(line) :]
        except BaseException:
            file.truncate(start)
            raise
