"""Which mask is that of which image: test/DEFECT/NAME.* has ground_truth/DEFECT/NAME_mask.png.

It may also be called NAME.png, and be a BMP, GIF, PNM or TIFF file; there must be exactly one.
"""

import difflib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from rd_jax.data.folders import normalised
from rd_jax.data.formats import LOSSLESS_SUFFIXES
from rd_jax.system.errors import UserError


def masks_of(
    images: Sequence[Path], masks: Mapping[str, Sequence[Path]], root: Path
) -> dict[Path, Path]:
    """Return the mask of each anomalous image, of all `masks` in folders in `root`.

    Raises UserError unless each image has exactly one, of its own, without loss, and there are no
    others.
    """
    by_name: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for mask in (mask for found in masks.values() for mask in found):
        by_name[_key(mask, mask.stem)].append(mask)
    image_of: dict[Path, Path] = {}
    without = []
    for image in images:
        found = [
            mask
            for stem in (f"{image.stem}_mask", image.stem)
            for mask in by_name.get(_key(image, stem), ())
        ]
        if len(found) > 1:
            raise UserError(f"{found[0]} and {found[1]} are both masks of {image}: remove one")
        for mask in found:
            if mask in image_of:
                raise UserError(f"{image_of[mask]} and {image} share {mask}: rename one")
            if mask.suffix.lower() not in LOSSLESS_SUFFIXES:
                lossless = ", ".join(LOSSLESS_SUFFIXES)
                raise UserError(f"mask {mask} may have lost pixels: save it in one of {lossless}")
            image_of[mask] = image
        without += [] if found else [image]
    others = sorted({mask for found in masks.values() for mask in found} - image_of.keys())
    for image in without:
        raise UserError(_missing(image, others, root))
    for mask in others:
        raise UserError(
            f"{mask} is the mask of no anomalous image in test/{mask.parent.name}: remove it, or "
            "mend its name"
        )
    return {image: mask for mask, image in image_of.items()}


def _key(path: Path, stem: str) -> tuple[str, str]:
    return normalised(path.parent.name), normalised(stem)


def _missing(image: Path, others: Sequence[Path], root: Path) -> str:
    expected = root / image.parent.name / f"{image.stem}_mask.png"
    alike = difflib.get_close_matches(str(expected), map(str, others), 1, 0)
    hint = f"rename {alike[0]} if it is that, " if alike else ""
    return (
        f"mask {expected} of test image {image} is missing: {hint}add it, or remove {root} to "
        "evaluate images alone"
    )
