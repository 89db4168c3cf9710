"""Write the outputs of each image: a heatmap, a map, a mask, and its row."""

import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from rd_jax.data.decode import jpeg, png, read_image
from rd_jax.method.score import Fusion
from rd_jax.method.thresholds import Thresholds
from rd_jax.predict.predictor import Prediction, Unreadable, attempt
from rd_jax.report.heatmap import overlay, resized_map
from rd_jax.store.rows import Row, write_json
from rd_jax.system.errors import UserError
from rd_jax.system.files import check_writable, write_whole

# The highest possible values, 65535 in maps of 16 bits: distances are at most 2, at 3 scales.
_LIMITS = {"sum": 6.0, "product": 8.0}
KINDS = ("heatmap", "map", "mask")
FOLDERS = tuple(f"{kind}s" for kind in KINDS)
COLUMNS = ("file", "score", "threshold", "verdict", *KINDS, "error")
FIELDS = (*COLUMNS, "regions")  # of a row
_OF_DATA = ("train", "test", "ground_truth")  # folders of a category
# Errors of a file system because of a name: not allowed, or taken by something else.
_OF_THE_NAME = {
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ),
    *(errno.EEXIST, errno.EISDIR, errno.ENOTDIR),
}


class Outputs(NamedTuple):
    """What to write, and where."""

    folder: Path
    thresholds: Thresholds
    heatmaps: int  # most pixels of the longer side; 0: none
    heatmap_format: str  # "png" or "jpg"
    maps: str | None  # "npy", "png16" or None
    fusion: Fusion  # of the maps
    masks: bool

    @property
    def take_images(self) -> bool:
        """Return whether an output needs the image itself."""
        return self.heatmaps > 0 or self.masks

    def path(self, kind: str, name: str) -> str:
        """Return the path of this image's heatmap, map or mask in the folder."""
        map_suffix = "png" if self.maps == "png16" else "npy"
        suffix = {"heatmap": self.heatmap_format, "map": map_suffix, "mask": "png"}[kind]
        return f"{kind}s/{name}_{kind}.{suffix}"

    def paths(self, name: str) -> list[str]:
        """Return the paths of all possible outputs of this image."""
        return [self.path(kind, name) for kind in KINDS]

    def write_scale(self) -> None:
        """Write how to compute values from the pixels of 16-bit maps."""
        if self.maps == "png16":
            scale = {"value": "pixel * scale", "scale": _LIMITS[self.fusion] / 65535}
            write_json(self.folder / "maps" / "scale.json", scale)


def check_output(folder: Path) -> None:
    """Raise UserError if a folder cannot be written to, or lies where training looks for images."""
    real = Path(os.path.realpath(folder))
    around = [part.parent for part in (real, *real.parents) if part.name in _OF_DATA]
    for category in (*around, *real.glob("*")):
        # Path.is_dir would raise beside a folder that cannot be entered, such as lost+found.
        if category.name not in FOLDERS and os.path.isdir(category / _OF_DATA[0] / "good"):
            raise UserError(
                f"--output {folder}: images there would be taken for data, as those of {category}; "
                "choose another folder"
            )
    for name in ("", *FOLDERS):
        check_writable(folder / name)


def write_images(outputs: Outputs, result: Prediction | Unreadable, name: str) -> Row:
    """Write the outputs of one image, named after `name`; return its row.

    Paths in the row are relative to the outputs' folder. A mask has the size of the image; so has a
    heatmap, unless a smaller one is asked for. Both need the image, which is read again if the
    result does not hold it. If an output cannot be written because of its name, the row's error
    says so. Raise UserError for other reasons, such as a full disk.
    """
    row = dict.fromkeys(FIELDS) | {"file": as_text(result.path)}
    if isinstance(result, Prediction) and result.image is None and outputs.take_images:
        read = attempt(lambda path: np.asarray(read_image(path)), result.path)
        result = read if isinstance(read, Unreadable) else result._replace(image=read)
    if isinstance(result, Unreadable):
        return row | {"error": result.reason}
    row |= {"score": result.score, "threshold": outputs.thresholds.image_threshold}
    if result.is_anomalous is not None:
        row["verdict"] = "anomalous" if result.is_anomalous else "normal"
        row["regions"] = regions(result, outputs.thresholds.pixel_threshold)
    for kind, content in _contents(outputs, result):
        path = outputs.path(kind, name)
        try:
            if os.path.lexists(outputs.folder / path):
                raise UserError(f"{path} exists: another image has the same name on this disk")
            write_whole(outputs.folder / path, content)
            row[kind] = path
        except UserError as error:
            if getattr(error.__cause__, "errno", errno.EEXIST) not in _OF_THE_NAME:
                raise
            row["error"] = str(error)
    return row


def as_text(path: Path) -> str:
    """Return a path as text that no spreadsheet takes for a formula."""
    return f"./{path}" if str(path).startswith(tuple("=+-@\t\r")) else str(path)


def regions(result: Prediction, pixel_threshold: float | None) -> list[dict[str, Any]] | None:
    """Return an image's regions above the threshold, highest first; a normal image has none.

    Pixels that touch at a side or corner belong to one region. It has a box [left, top, width,
    height] and an area, in pixels of the picture, and its highest value. Return None without a
    threshold.
    """
    if not result.is_anomalous or pixel_threshold is None:
        return None if result.is_anomalous else []
    values = result.full_size_map()
    labels, _ = ndimage.label(values > pixel_threshold, np.ones((3, 3)))
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        inside = labels[rows, columns] == number
        highest = float(values[rows, columns][inside].max())
        box = [columns.start, rows.start, *inside.shape[::-1]]
        found.append({"box": box, "area": int(inside.sum()), "highest": highest})
    return sorted(found, key=lambda region: -region["highest"])


def _contents(outputs: Outputs, result: Prediction) -> Iterator[tuple[str, bytes]]:
    """Yield the kind and the content of each output file."""
    thresholds, image, anomaly_map = outputs.thresholds, result.image, result.anomaly_map
    if image is not None and outputs.heatmaps:
        shown = Image.fromarray(image)
        shown.thumbnail((outputs.heatmaps, outputs.heatmaps), Image.Resampling.BILINEAR)
        scale = thresholds.map_low, thresholds.map_high
        encode = png if outputs.heatmap_format == "png" else jpeg
        is_marked = bool(result.is_anomalous) and thresholds.pixel_threshold is not None
        colours = overlay(np.asarray(shown), anomaly_map, *scale, is_marked)
        yield "heatmap", encode(colours)
    if outputs.maps == "npy":
        file = io.BytesIO()
        np.save(file, anomaly_map)
        yield "map", file.getvalue()
    elif outputs.maps == "png16":
        pixels = np.clip(anomaly_map / _LIMITS[outputs.fusion], 0, 1) * 65535
        yield "map", png(np.round(pixels).astype(np.uint16))
    if image is not None and outputs.masks:
        mask = resized_map(anomaly_map, image.shape[:2]) > thresholds.pixel_threshold
        mask &= bool(result.is_anomalous)  # a normal image has no anomalous pixel
        yield "mask", png(np.uint8(255) * mask)
