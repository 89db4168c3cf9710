"""List images in folders: MVTec AD's layout, similar ones of other data sets, a user's own.

DATA_DIR/CATEGORY/train/good/*.png                  or only DATA_DIR/*.png
DATA_DIR/CATEGORY/validation/good/*.png             held out
DATA_DIR/CATEGORY/test/good/*.png                   or test_public
DATA_DIR/CATEGORY/test/DEFECT/*.png
DATA_DIR/CATEGORY/ground_truth/DEFECT/*_mask.png    see masks.py; or in the folder of the test

Instead of good, a folder may be called ok or normal, in capitals or not.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rd_jax.data import NORMAL, Category, Row, Source, chosen_names, chosen_of
from rd_jax.data.folders import (
    Listing,
    images_below,
    images_by_folder,
    listed,
    looks_like_image,
    normalised,
)
from rd_jax.data.headers import FORMAT_NAMES
from rd_jax.data.masks import masks_of
from rd_jax.data.rows import category_of, label_of
from rd_jax.system.errors import UserError, printable
from rd_jax.system.files import user_path

logger = logging.getLogger(__name__)

_MASKS = "ground_truth"
_TESTS = ("test", "test_public")
_SUBFOLDERS = ("train", "validation", *_TESTS, _MASKS)


def find_categories(source: Source, chosen: str) -> list[Category]:
    """Return the categories in `data_dir`: one, several between commas, or all.

    Warns of images that are not used. Raises UserError if there is no such category, or as
    `_rows_of` does.
    """
    data_dir, chosen = user_path(source.data_dir), normalised(chosen)
    if not os.path.isdir(data_dir):
        raise UserError(f"data_dir {data_dir} is not a folder: set --config.data_dir")
    there = listed(data_dir)
    is_listed = chosen and there.folders.keys() >= {*chosen_names(chosen, there.folders)}
    roots = chosen_of(there.folders if is_listed else _categories(there), chosen, data_dir)
    is_itself = data_dir in roots.values()
    if not chosen and not is_itself:
        _warn_of_unused(there, [*roots])
    return [
        category_of(name, _rows_of(root, is_itself), source, root, data_dir)
        for name, root in roots.items()
    ]


def _categories(there: Listing) -> dict[str, Path]:
    """Return the folders of all categories. Raises UserError if there is none.

    The listed folder itself is a category if it holds `train` or images.
    """
    found = {name: listed(folder, ["train"]) for name, folder in there.folders.items()}
    if categories := {n: inside.folder for n, inside in found.items() if "train" in inside.folders}:
        return categories
    listed(there.folder, _SUBFOLDERS)  # raises if a name is nearly right
    if "train" in there.folders or any(map(looks_like_image, there.files)):
        return {normalised(there.folder.absolute().name): there.folder}
    raise UserError(
        f"data_dir {there.folder} holds no category: expected CATEGORY/train/{NORMAL}/ in it. For "
        "another layout, write a table: docs/datasets.md"
    )


def _rows_of(root: Path, may_be_flat: bool) -> list[Row]:
    """List the images of one category, sorted by path.

    In a flat folder, all images are good. A category without `test` has no test images; without
    `ground_truth`, no masks. Hidden files and files that are no images are left out. Raises
    UserError if training images are missing, if images lie where they would be ignored, or if there
    are masks, but not exactly one for each anomalous image.
    """
    if root.name != printable(root.name):
        raise UserError(f"category {root.name!r} in {root.parent}: rename it to printable text")
    there = listed(root, _SUBFOLDERS)
    if may_be_flat and there.folders.keys().isdisjoint(_SUBFOLDERS):
        return [Row(path, "train") for path in sorted(images_below(root))]
    test = next((name for name in _TESTS if name in there.folders), "test")
    masks = next((m for m in (root / _MASKS, root / test / _MASKS) if os.path.isdir(m)), None)
    rows = [
        row
        for name, split in (("train", "train"), ("validation", "validation"), (test, "test"))
        if name in there.folders
        for row in _rows_in(there.folders[name], split, masks)
    ]
    _warn_of_unused(there, ["train", "validation", test, _MASKS])
    if not any(row.split == "train" for row in rows):
        raise UserError(
            f"{root / 'train' / NORMAL} holds no images ({FORMAT_NAMES}): put the good ones there"
        )
    anomalous = [row.image for row in rows if row.label != NORMAL]
    mask_of = masks_of(anomalous, masks) if masks else {}
    return [row._replace(masks=mask_of.get(row.image, ())) for row in rows]


def _rows_in(folder: Path, split: str, masks: Path | None) -> Iterator[Row]:
    """Yield the images of a split without their masks, which may lie in the same folder."""
    images = images_by_folder(folder, skipped=masks)
    normal = [name for name, found in images.items() if found and label_of(name) == NORMAL]
    if len(normal) > 1:
        raise UserError(f"{folder} has normal images in {', '.join(normal)}: move them into one")
    for name, found in images.items():
        label = label_of(name)
        if found and label != NORMAL and split != "test":
            raise UserError(
                f"{folder / name} holds images, but only those of {NORMAL} are trained on or held "
                "out: move them there, or elsewhere"
            )
        yield from (Row(path, split, label) for path in found)


def _warn_of_unused(there: Listing, used: Sequence[str]) -> None:
    """Log images in a folder that lie outside of the folders `used`."""
    others = [folder for name, folder in there.folders.items() if name not in used]
    unused = [*filter(looks_like_image, there.files), *(o for o in others if any(images_below(o)))]
    if unused:
        logger.warning(
            "%s: images are not used from %s, only from %s",
            *(there.folder, printable(", ".join(path.name for path in unused)), ", ".join(used)),
        )
