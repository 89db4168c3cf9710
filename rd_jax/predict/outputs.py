"""What predictions leave on disk: rows in two tables; for each image a heatmap, a map, a mask."""

import csv
import hashlib
import io
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rd_jax.data.decode import jpeg, png, read_image
from rd_jax.data.mvtec import NORMAL, PARTS
from rd_jax.method.calibration import Calibration
from rd_jax.predict.predictor import Prediction, Unreadable, attempt
from rd_jax.report.heatmap import overlay, resized_map
from rd_jax.store.rows import Row, write_json
from rd_jax.system.errors import UserError
from rd_jax.system.files import check_writable, write_whole, writing

FOLDERS = ("heatmaps", "maps", "masks")
COLUMNS = ("file", "score", "threshold", "verdict", "heatmap", "map", "mask", "error")


class Outputs(NamedTuple):
    """What to write, and where."""

    folder: Path
    calibration: Calibration
    heatmaps: int  # pixels of the longer side, at most; 0: none
    heatmap_format: str  # "png" or "jpg"
    maps: str | None  # "npy", "png16" or None
    map_limit: float  # no map has values above; 65535 in maps of 16 bits
    masks: bool

    @property
    def take_images(self) -> bool:
        """Whether something is written that the image itself is needed for."""
        return self.heatmaps > 0 or self.masks


def check_output(folder: Path) -> None:
    """Raises UserError if it cannot be written to, or if heatmaps in it would be taken for data."""
    real = Path(os.path.realpath(folder))
    trained_on = f"train/{NORMAL}"  # in every category of data
    around = [part.parent for part in (real, *real.parents) if part.name in PARTS]
    beside = [found.parents[1] for found in real.glob(f"*/{trained_on}")]
    for category in [*around, *(folder for folder in beside if folder.name not in FOLDERS)]:
        if not (category / trained_on).is_dir():
            continue
        raise UserError(
            f"--output {folder}: what is written there would be taken for data, as those of "
            f"{category}; choose another"
        )
    for name in ("", *FOLDERS):
        check_writable(folder / name)


@contextmanager
def tables(folder: Path) -> Iterator[Callable[[Row], None]]:
    """Begins predictions.csv and predictions.jsonl anew; yields what appends a row to both.

    An appended row is with the operating system, not in a buffer of this process. Raises UserError
    if the disk is full, and leaves whole rows.
    """
    with ExitStack() as opened:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            csv_file, jsonl_file = (
                opened.enter_context(open(folder / f"predictions.{suffix}", "wb", buffering=0))
                for suffix in ("csv", "jsonl")
            )

        def append(row: Row) -> None:
            _append(csv_file, _csv_line(row[name] for name in COLUMNS))
            _append(jsonl_file, json.dumps(row, allow_nan=False).encode() + b"\n")

        _append(csv_file, _csv_line(COLUMNS))
        yield append


def write_scale(outputs: Outputs) -> None:
    """Says beside maps of 16 bits how to get their values back."""
    if outputs.maps == "png16":
        scale = {"value": "pixel * scale", "scale": outputs.map_limit / 65535}
        write_json(outputs.folder / "maps" / "scale.json", scale)


def write_images(outputs: Outputs, result: Prediction | Unreadable, name: str) -> Row:
    """Writes what was asked for of one image, named after `name`; returns its row.

    Where the file system does not take a name, it is shortened. Paths in the row are relative to
    the outputs' folder. A mask has the size of the image, and a heatmap, unless it is to be
    smaller; for them the image is read again, if the result does not have it. Raises UserError if
    something cannot be written.
    """
    row = dict.fromkeys(COLUMNS) | {"file": str(result.path)}
    if isinstance(result, Unreadable):
        return row | {"error": result.reason}
    calibration, threshold = outputs.calibration, outputs.calibration.image_threshold
    row |= {"score": result.score, "threshold": threshold}
    is_anomalous = threshold is not None and result.score > threshold
    if threshold is not None:
        row["verdict"] = "anomalous" if is_anomalous else "normal"
    image = result.image
    if image is None and outputs.take_images:
        read = attempt(lambda path: np.asarray(read_image(path)), result.path)
        if isinstance(read, Unreadable):
            return row | {"error": read.reason}
        image = read

    def write(column: str, suffix: str, content: bytes) -> None:
        row[column] = path = f"{column}s/{name}.{suffix}"
        try:
            write_whole(outputs.folder / path, content)
        except UserError as error:
            # The name may be too long, refused, or a folder's; what else is wrong is wrong again.
            row[column] = path = f"{column}s/{_short(name)}.{suffix}"
            try:
                write_whole(outputs.folder / path, content)
            except UserError:
                raise error from error.__cause__

    anomaly_map = result.anomaly_map
    if image is not None and outputs.heatmaps:
        shown = _at_most(image, outputs.heatmaps)
        heatmap = overlay(shown, anomaly_map, calibration.map_low, calibration.map_high)
        encode = png if outputs.heatmap_format == "png" else jpeg
        write("heatmap", outputs.heatmap_format, encode(heatmap))
    if outputs.maps == "npy":
        file = io.BytesIO()
        np.save(file, anomaly_map)
        write("map", "npy", file.getvalue())
    elif outputs.maps == "png16":
        pixels = np.round(np.clip(anomaly_map, 0, outputs.map_limit) * 65535 / outputs.map_limit)
        write("map", "png", png(pixels.astype(np.uint16)))
    if image is not None and outputs.masks:
        mask = resized_map(anomaly_map, image.shape[:2]) > calibration.pixel_threshold
        mask &= is_anomalous  # what is normal has no anomalous pixel
        write("mask", "png", png(np.uint8(255) * mask))
    return row


def _at_most(image: np.ndarray, longer_side: int) -> np.ndarray:
    """The image [h, w, 3], smaller if it is larger than that."""
    small = Image.fromarray(image)
    small.thumbnail((longer_side, longer_side), Image.Resampling.BILINEAR)
    return np.asarray(small)


def distinct(names: Iterable[str]) -> Iterator[str]:
    """The names, shortened where one is an earlier one's to a file system that ignores case."""
    seen = set()
    for name in names:
        key = unicodedata.normalize("NFD", name.casefold())
        yield _short(name) if key in seen else name
        seen.add(key)


def _short(name: str) -> str:
    """The start of the file's name and a hash of its whole path, of what any file system takes."""
    start = re.sub(r"[^\w.-]+", "_", os.path.basename(name), flags=re.ASCII)[:100]
    return f"{start}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"


def _csv_line(values: Any) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue().encode("utf-8", "surrogateescape")  # file names may be any bytes


def _append(file: FileIO, content: bytes) -> None:
    """Appends all of it, or nothing."""
    start = file.tell()
    with writing(Path(str(file.name))):
        try:
            while content:
                content = content[file.write(content) :]
        except BaseException:
            file.seek(start)
            file.truncate()
            raise
