"""Read the masks of anomalous images: match them to images, and find their anomalous levels.

The mask of test/DEFECT/NAME.* is ground_truth/DEFECT/NAME_mask.*, or NAME.*, or all files in a
folder NAME together. Exactly one of these must exist, in a lossless format.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

from rd_jax.data.decode import NO_REMARK, TO_8_BITS, UNCLEAR, pixel_hash, placed, upright
from rd_jax.data.folders import images_below, normalised
from rd_jax.data.headers import open_image, upright_size
from rd_jax.system.errors import UserError


def masks_of(images: Sequence[Path], root: Path) -> dict[Path, tuple[Path, ...]]:
    """Return the mask files of each anomalous image, which lie below the folder `root`.

    Raises UserError unless each image has exactly one mask, and each mask has one image.
    """
    files: dict[Path, list[Path]] = {}
    for path in images_below(root):
        is_inside = path.parent.parent.parent == root  # the folder is the mask
        files.setdefault(path.parent if is_inside else path, []).append(path)
    image_by = _by_name(images, "", "share one mask: rename one")
    mask_by = _by_name([*files], "_mask", "are masks of one image: remove one")
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
    return {image: tuple(files[mask_by[key]]) for key, image in image_by.items()}


def _by_name(paths: Sequence[Path], ending: str, problem: str) -> dict[tuple[str, str], Path]:
    """Return paths by (DEFECT, NAME without `ending`). Raise UserError if two are equal."""
    found: dict[tuple[str, str], Path] = {}
    for path in paths:
        name = normalised(path.parent.name), normalised(path.stem).removesuffix(ending)
        if (other := found.setdefault(name, path)) != path:
            raise UserError(f"{other} and {path} {problem}")
    return found


def decode_mask(
    path: Path | None,
    image: Path,
    *others: Path | None,
    size: tuple[int, int],
    resize: str = "stretch",
) -> tuple[np.ndarray, str, int]:
    """Return the mask [H, W] bool in the size of the image, its `pixel_hash` and its remark.

    Pixels above half after resizing are true. Without a mask, return all false and a hash of zeros.
    """
    if path is None:
        return np.zeros(size, bool), 64 * "0", NO_REMARK
    mask = read_mask(path, image, *filter(None, others))
    is_anomalous = placed(mask, size, resize)[0][..., 0] > 127
    return is_anomalous, pixel_hash(mask), mask.info["remark"]


def read_mask(path: Path, image: Path, *others: Path) -> Image.Image:
    """Return the mask of an anomalous image, united with `others`: see `_read_one`."""
    mask = _read_one(path, image)
    for other in others:
        try:
            more = _read_one(other, image)
        except Exception as error:  # decoders raise all kinds of errors for broken files
            raise ValueError(f"with {other.name}: {error}") from error
        remark = max(mask.info["remark"], more.info["remark"])
        mask = ImageChops.lighter(mask, more)
        mask.info["remark"] = remark
    return mask


def _read_one(path: Path, image: Path) -> Image.Image:
    """Return a mask of an anomalous image, upright and in grey, above 127 where anomalous.

    A pixel's level is that of its brightest colour. If no level is above half white, levels are
    labels, and all but 0 are anomalous. `info["remark"]` says if there are levels between. Raises
    ValueError if the mask has another size than the image, if its format may lose pixels, if all
    pixels are anomalous at several levels, or if some are transparent: their colour has no meaning.
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
        return _verdicts(_grey(mask))


def _grey(mask: Image.Image) -> np.ndarray:
    """Return the levels [h, w] of 8 or 16 bits; of a picture in colour, the brightest colour's."""
    if mask.mode[0] == "I":
        return np.asarray(mask).astype(np.uint16)
    if mask.mode in ("1", "L"):
        return np.asarray(mask.convert("L"))
    return np.asarray(mask.convert("RGB")).max(-1)


def _verdicts(grey: np.ndarray) -> Image.Image:
    """Return the mask of these levels [h, w]: see `_read_one`."""
    levels, white = np.unique(grey), np.iinfo(grey.dtype).max
    lowest, highest = levels[[0, -1]]
    limit = 0 if highest <= white // 2 else white // 2
    if limit < lowest < white:
        raise ValueError(
            f"mask values are {lowest} to {highest}, so all pixels would be anomalous: write "
            "anomalous pixels as 255, the others as 0"
        )
    if not limit:
        grey = np.uint8(255) * (grey > 0)
    mask = Image.fromarray(TO_8_BITS[grey] if grey.dtype == np.uint16 else grey)
    is_between = (levels > 0) & (levels < highest) & (levels <= white // 2)
    mask.info["remark"] = UNCLEAR if is_between.any() else NO_REMARK
    return mask
