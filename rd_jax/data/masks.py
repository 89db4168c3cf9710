"""Which mask is that of which image: test/DEFECT/NAME.* has ground_truth/DEFECT/NAME_mask.png.

It may also be called NAME.png, and be a BMP, GIF, PNM or TIFF file; there must be exactly one.
"""

import difflib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from rd_jax.data.folders import images_by_folder
from rd_jax.data.formats import LOSSLESS_SUFFIXES
from rd_jax.system.errors import UserError
from rd_jax.system.files import composed


def masks_of(images: Sequence[Path], root: Path) -> Mapping[Path, Path]:
    """The mask in `root` of each anomalous image.

    Raises UserError unless each has exactly one, of its own, without loss, and `root` no others.
    """
    masks: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for found in images_by_folder(root).values():
        for mask in found:
            masks[_key(mask, mask.stem)].append(mask)
    candidates = {
        image: [
            *masks.get(_key(image, f"{image.stem}_mask"), ()),
            *masks.get(_key(image, image.stem), ()),
        ]
        for image in images
    }
    image_of: dict[Path, Path] = {}
    for image, found in candidates.items():
        if len(found) > 1:
            raise UserError(f"{found[0]} and {found[1]} are both masks of {image}: remove one")
        for mask in found:
            if mask in image_of:
                raise UserError(f"{image_of[mask]} and {image} share {mask}: rename one")
            if mask.suffix.lower() not in LOSSLESS_SUFFIXES:
                lossless = ", ".join(LOSSLESS_SUFFIXES)
                raise UserError(f"mask {mask} may have lost pixels: save it in one of {lossless}")
            image_of[mask] = image
    others = sorted({mask for found in masks.values() for mask in found} - image_of.keys())
    for image, found in candidates.items():
        if not found:
            raise UserError(_missing(image, others, root))
    for mask in others:
        raise UserError(
            f"{mask} is the mask of no anomalous image in test/{mask.parent.name}: remove it, or "
            "mend its name"
        )
    return {image: mask for mask, image in image_of.items()}


def _key(path: Path, stem: str) -> tuple[str, str]:
    return composed(path.parent.name), composed(stem)


def _missing(image: Path, others: Sequence[Path], root: Path) -> str:
    expected = root / image.parent.name / f"{image.stem}_mask.png"
    alike = difflib.get_close_matches(str(expected), map(str, others), 1, 0)
    hint = f"rename {alike[0]} if it is that, " if alike else ""
    return (
        f"mask {expected} of test image {image} is missing: {hint}add it, or remove {root} to "
        "evaluate images alone"
    )
