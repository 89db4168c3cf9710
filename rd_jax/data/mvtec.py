"""Folders in MVTec AD layout: the official data set or a user's own.

DATA_DIR/CATEGORY/train/good/*.png
DATA_DIR/CATEGORY/test/good/*.png
DATA_DIR/CATEGORY/test/DEFECT/*.png
DATA_DIR/CATEGORY/ground_truth/DEFECT/*_mask.png
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rd_jax.data import Split
from rd_jax.data.folders import images_by_folder, listed, names
from rd_jax.data.images import IMAGE_SUFFIXES, content_sha256, load_images, load_masks
from rd_jax.system.errors import UserError, printable

logger = logging.getLogger(__name__)

NORMAL = "good"


class LabelledImage(NamedTuple):
    """A test image, its defect type ("good" if it has none) and its mask, if any."""

    path: Path
    defect: str
    mask: Path | None


class Category(NamedTuple):
    """The files of one category; `has_masks` says whether pixels can be evaluated."""

    name: str
    train: tuple[Path, ...]
    test: tuple[LabelledImage, ...]
    has_masks: bool


def find_categories(data_dir: Path) -> list[str]:
    """The names of all categories in `data_dir`, sorted. Raises UserError if there is none."""
    if not os.path.isdir(data_dir):
        raise UserError(f"data_dir {data_dir} is not a folder: set --config.data_dir")
    _, folders = listed(data_dir)
    categories = [folder.name for folder in folders if "train" in names(folder)]
    if not categories and os.path.isdir(data_dir / "train" / NORMAL):
        raise UserError(
            f"data_dir {data_dir} is itself a category: set --config.data_dir="
            f"{data_dir.parent} --config.category={data_dir.name}"
        )
    if not categories:
        raise UserError(
            f"data_dir {data_dir} holds no category: expected CATEGORY/train/{NORMAL}/ in it"
        )
    return categories


def read_category(data_dir: Path, name: str) -> Category:
    """Lists the files of one category, sorted by path.

    A category without `test` has no test images; without `ground_truth`, no masks. What is hidden
    and what is no image is left out. Raises UserError if the category or its training images are
    missing, if images lie where they would be left out, or if there are masks, but not exactly
    one for each anomalous image.
    """
    categories = find_categories(data_dir)
    if name not in categories:
        raise UserError(
            f"category {name!r} is not in data_dir {data_dir}: it has {', '.join(categories)}"
        )
    if name != printable(name):
        raise UserError(f"category {name!r} in data_dir {data_dir}: rename it to printable text")
    root = data_dir / name
    train = images_by_folder(root / "train")
    for folder, found in train.items():
        if folder != NORMAL and found:
            raise UserError(
                f"{root / 'train' / folder} holds images, but only those of {NORMAL} are trained "
                "on: move them there, or elsewhere"
            )
    if not train.get(NORMAL):
        raise UserError(f"{root / 'train' / NORMAL} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    has_masks = "ground_truth" in names(root)
    test = []
    for folder, found in images_by_folder(root / "test").items():
        if folder != NORMAL and folder.lower() == NORMAL:
            raise UserError(
                f"{root / 'test' / folder} counts as a defect: call it {NORMAL} if it is none, or "
                "by another name"
            )
        masks = root / "ground_truth" / folder if has_masks and folder != NORMAL else None
        for path in found:
            test.append(LabelledImage(path, folder, masks and masks / f"{path.stem}_mask.png"))
    if has_masks:
        _check_masks(test, root / "ground_truth")
    return Category(name, tuple(train[NORMAL]), tuple(test), has_masks)


def _check_masks(test: Sequence[LabelledImage], root: Path) -> None:
    """Raises UserError if the masks in `root` are not exactly those of the images."""
    found = {path for masks in images_by_folder(root).values() for path in masks}
    image_of: dict[Path, Path] = {}
    for path, _, mask in test:
        if mask is None:
            continue
        if mask in image_of:
            raise UserError(f"{image_of[mask]} and {path} share {mask}: rename one")
        if mask not in found:
            raise UserError(
                f"mask {mask} of test image {path} is missing: add it, or remove {root} to "
                "evaluate images alone"
            )
        image_of[mask] = path
    for mask in sorted(found - image_of.keys()):
        which = "a normal image" if mask.parent.name == NORMAL else "no test image"
        raise UserError(f"{mask} is the mask of {which}: remove it, or mend its name")


def load_category(data_dir: Path, name: str, size: int) -> Split:
    """Decodes a category. Raises UserError as `read_category`, or for files it cannot read."""
    files = read_category(data_dir, name)
    test, masks = [image.path for image in files.test], [image.mask for image in files.test]
    train_sha256 = content_sha256(files.train)
    pairs_sha256 = content_sha256([*test, *masks])
    test_names = [printable(f"{image.defect}/{image.path.name}") for image in files.test]
    tested = repr((pairs_sha256, test_names, files.has_masks))
    split = Split(
        name=name,
        train=load_images(files.train, size, train_sha256),
        train_names=[printable(path.name) for path in files.train],
        train_sha256=train_sha256,
        test=load_images(test, size, pairs_sha256),
        test_names=test_names,
        test_sha256=hashlib.sha256(tested.encode()).hexdigest(),
        labels=np.array([image.defect != NORMAL for image in files.test], bool),
        masks=load_masks(masks, test, size, pairs_sha256) if files.has_masks else None,
    )
    if split.masks is not None:
        vanished = np.compress(split.labels & ~split.masks.any((1, 2)), test_names)
        if len(vanished):
            logger.warning(
                "%s: at %d pixels nothing is left of %d masks, so their pixels count as normal: %s",
                *(name, size, len(vanished), ", ".join(vanished[:3])),
            )
    return split
