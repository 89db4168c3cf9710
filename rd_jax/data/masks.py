"""The masks of anomalous images: which is whose, and which of its levels are anomalous.

test/DEFECT/NAME.* has ground_truth/DEFECT/NAME_mask.*, or NAME.*: there must be exactly one, in a
format without loss.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rd_jax.data.decode import (
    TO_8_BITS,
    UNCLEAR,
    Notes,
    grey_levels,
    looked_up,
    pixel_hash,
    placed,
    stripes_of,
    upright,
)
from rd_jax.data.folders import normalised
from rd_jax.data.headers import open_image, upright_size
from rd_jax.system.errors import UserError


def masks_of(images: Sequence[Path], masks: Sequence[Path], root: Path) -> dict[Path, Path]:
    """Return the mask of each anomalous image, of all `masks` below the folder `root`.

    Raises UserError unless each image has exactly one, of its own, and there are no others.
    """
    image_by: dict[tuple[str, str], Path] = {}
    for image in images:
        if (other := image_by.setdefault(_key(image), image)) != image:
            raise UserError(f"{other} and {image} share one mask: rename one")
    mask_by: dict[tuple[str, str], Path] = {}
    for mask in masks:
        if (other := mask_by.setdefault(_key(mask, "_mask"), mask)) != mask:
            raise UserError(f"{other} and {mask} are masks of one image: remove one")
    for key in sorted(image_by.keys() - mask_by.keys()):
        expected = str(root / image_by[key].parent.name / f"{image_by[key].stem}_mask.png")
        raise UserError(
            f"mask {expected} of test image {image_by[key]} is missing: add it, mend its name, or "
            f"remove {root} to evaluate images alone"
        )
    for mask in (mask_by[key] for key in sorted(mask_by.keys() - image_by.keys())):
        raise UserError(
            f"{mask} is the mask of no anomalous image in test/{mask.parent.name}: remove it, or "
            "mend its name"
        )
    return {image: mask_by[key] for key, image in image_by.items()}


def _key(path: Path, ending: str = "") -> tuple[str, str]:
    return normalised(path.parent.name), normalised(path.stem).removesuffix(ending)


def decode_mask(
    path: Path | None,
    image: Path,
    size: tuple[int, int],
    resize: str = "stretch",
    notes: Notes | None = None,
) -> tuple[np.ndarray, str]:
    """Return [H, W] bool, resized as the image and thresholded at half, and the `pixel_hash`.

    Without a mask, false and zeros.
    """
    if path is None:
        return np.zeros(size, bool), 64 * "0"
    mask = read_mask(path, image, notes)
    return placed(mask, size, resize)[0][..., 0] > 127, pixel_hash(mask)


def read_mask(path: Path, image: Path, notes: Notes | None = None) -> Image.Image:
    """Return the mask of an anomalous image, upright and in grey, above 127 where anomalous.

    Its level is that of its brightest colour. In a mask without levels above half white these are
    labels, of which all but 0 are anomalous. Notes masks with levels between. Raises ValueError if
    the mask has another size than the image, is in a format that may lose pixels, if none of its
    pixels is anomalous, or all at several levels, or if some are transparent, so that their colour
    may mean anything.
    """
    with image.open("rb") as stream, open_image(stream) as file:
        width, height = upright_size(file)
    with upright(path) as mask:
        if mask.size != (width, height):
            raise ValueError(
                f"the mask has {mask.width} x {mask.height} pixels, its image {image} "
                f"{width} x {height}"
            )
        if mask.info["is_lossy"]:
            raise ValueError("the mask may have lost pixels: save it as PNG, BMP, GIF, PNM or TIFF")
        if mask.has_transparency_data and np.asarray(mask.convert("RGBA"))[..., 3].min() < 255:
            raise ValueError("the mask has transparent pixels: save it without an alpha channel")
        mask.info.pop("transparency", None)
        return looked_up(mask, _verdicts(mask, path, notes))


def _verdicts(mask: Image.Image, path: Path, notes: Notes | None) -> np.ndarray:
    """Return the level of 8 bits that stands for each level of the mask, as of `read_mask`."""
    white = 65535 if mask.mode[0] == "I" else 255
    counts = np.zeros(white + 1, np.int64)
    for _, stripe in stripes_of(mask):
        counts += np.bincount(grey_levels(stripe).ravel(), minlength=white + 1)
    levels = np.flatnonzero(counts)
    lowest, highest = int(levels[0]), int(levels[-1])
    limit = 0 if highest <= white // 2 else white // 2
    if not highest or limit < lowest < white:
        share = "all" if highest else "none"
        raise ValueError(
            f"mask values are {lowest} to {highest}, of which {share} would be anomalous: write "
            "anomalous pixels as 255, the others as 0"
        )
    is_between = (levels > 0) & (levels < highest) & (levels <= white // 2)
    if notes is not None and is_between.any():
        notes[path] = UNCLEAR
    if not limit:
        return np.uint8(255) * (np.arange(white + 1) > 0)
    return TO_8_BITS if white > 255 else np.arange(256, dtype=np.uint8)
