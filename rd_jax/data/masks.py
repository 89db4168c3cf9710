"""The mask of an anomalous image: which of its levels are anomalous."""

import logging
from pathlib import Path

import numpy as np
from PIL import Image

from rd_jax.data.decode import (
    TO_8_BITS,
    Notes,
    grey_levels,
    looked_up,
    named_files,
    pixel_hash,
    placed,
    stripes_of,
    upright,
)
from rd_jax.data.headers import open_image, upright_size

logger = logging.getLogger(__name__)


def decode_mask(
    path: Path | None,
    image: Path,
    size: tuple[int, int],
    resize: str = "stretch",
    notes: Notes | None = None,
) -> tuple[np.ndarray, bytes]:
    """Return [H, W] bool, resized as the image and thresholded at half, and the `pixel_hash`.

    Without a mask, false and zeros.
    """
    if path is None:
        return np.zeros(size, bool), bytes(32)
    mask = read_mask(path, image, notes)
    return placed(mask, size, resize)[0][..., 0] > 127, pixel_hash(mask)


def read_mask(path: Path, image: Path, notes: Notes | None = None) -> Image.Image:
    """Return the mask of an anomalous image, upright and in grey, above 127 where anomalous.

    Its level is that of its brightest colour. In a mask without levels above half white that is
    not lossy these are labels, of which all but 0 are anomalous. Notes the levels between.
    Raises ValueError if the mask has another size than the image, if none of its pixels is
    anomalous, or all at several levels, or if some are transparent, so that their colour may mean
    anything.
    """
    with image.open("rb") as stream, open_image(stream) as file:
        width, height = upright_size(file)
    with upright(path) as mask:
        if mask.size != (width, height):
            raise ValueError(
                f"the mask has {mask.width} x {mask.height} pixels, its image {image} "
                f"{width} x {height}"
            )
        if mask.has_transparency_data and np.asarray(mask.convert("RGBA"))[..., 3].min() < 255:
            raise ValueError("the mask has transparent pixels: save it without an alpha channel")
        mask.info.pop("transparency", None)
        return looked_up(mask, _verdicts(mask, path, notes))


def _verdicts(mask: Image.Image, path: Path, notes: Notes | None) -> np.ndarray:
    """Return the level of 8 bits that stands for each level of the mask, as of `read_mask`."""
    white, is_lossy = 65535 if mask.mode[0] == "I" else 255, mask.info["is_lossy"]
    counts = np.zeros(white + 1, np.int64)
    for _, stripe in stripes_of(mask):
        counts += np.bincount(grey_levels(stripe).ravel(), minlength=white + 1)
    levels = np.flatnonzero(counts)
    lowest, highest = int(levels[0]), int(levels[-1])
    are_labels = highest <= white // 2 and not is_lossy
    limit = 0 if are_labels else white // 2
    if highest <= limit or limit < lowest < white:
        share = "none" if highest <= limit else "all"
        raise ValueError(
            f"mask values are {lowest} to {highest}, of which {share} would be anomalous: write "
            "anomalous pixels as 255, the others as 0"
        )
    noise = white // 8 if is_lossy else 0
    between = levels[(levels > noise) & (levels < highest) & (levels <= white // 2)]
    if notes is not None and between.size:
        notes.levels[path] = int(between[0]), int(between[-1])
    if are_labels:
        return np.uint8(255) * (np.arange(white + 1) > 0)
    return TO_8_BITS if white > 255 else np.arange(256, dtype=np.uint8)


def warn_of_masks(notes: Notes, num_masks: int) -> None:
    """Log which masks are not black and white."""
    if notes.levels:
        logger.warning(
            "%d of %d masks have levels between normal and anomalous, e.g. %s: %d to %d there. "
            "Pixels above half white are anomalous, or in a mask without any, all but 0: write "
            "anomalous pixels as 255, the others as 0, if other ones are meant",
            *(len(notes.levels), num_masks, named_files(notes.levels, 1)),
            *notes.levels[min(notes.levels)],
        )
