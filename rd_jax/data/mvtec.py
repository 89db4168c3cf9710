"""Folders in MVTec AD layout: the official data set or a user's own.

DATA_DIR/CATEGORY/train/good/*.png
DATA_DIR/CATEGORY/test/good/*.png
DATA_DIR/CATEGORY/test/DEFECT/*.png
DATA_DIR/CATEGORY/ground_truth/DEFECT/*_mask.png    see masks.py
"""

import hashlib
import itertools
import logging
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rd_jax.data import Split
from rd_jax.data.folders import images_by_folder, listed, names
from rd_jax.data.formats import FORMAT_NAMES, is_named_like_image
from rd_jax.data.hashes import content_sha256
from rd_jax.data.images import load_images, load_masks
from rd_jax.data.masks import masks_of
from rd_jax.method.size import Size, height_and_width
from rd_jax.system.errors import UserError, printable
from rd_jax.system.files import composed

logger = logging.getLogger(__name__)

PARTS = ("train", "test", "ground_truth")
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
    """The names of all categories in `data_dir`, sorted.

    Raises UserError if there is none, or if a folder would be one but for the spelling of train.
    """
    categories = _categories(data_dir)
    for folder in listed(data_dir)[1]:
        if folder.name not in categories:
            _check_spelling(folder, ["train"])
    if not categories and os.path.isdir(data_dir / "train" / NORMAL):
        raise UserError(
            f"data_dir {data_dir} is itself a category: set --config.data_dir="
            f"{data_dir.parent} --config.category={data_dir.name}"
        )
    if not categories:
        _check_spelling(data_dir, PARTS)
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
    root = _category_folder(data_dir, name)
    _check_spelling(root, PARTS)
    for part in ("train", "test"):
        if os.path.isdir(root / part):
            _check_spelling(root / part, [NORMAL])
    train = images_by_folder(root / "train")
    for folder, found in train.items():
        if folder != NORMAL and found:
            raise UserError(
                f"{root / 'train' / folder} holds images, but only those of {NORMAL} are trained "
                "on: move them there, or elsewhere"
            )
    if not train.get(NORMAL):
        raise UserError(f"{root / 'train' / NORMAL} holds no images ({FORMAT_NAMES})")
    test = {
        path: folder for folder, found in images_by_folder(root / "test").items() for path in found
    }
    has_masks = "ground_truth" in names(root)
    anomalous = [path for path, folder in test.items() if folder != NORMAL]
    mask_of = masks_of(anomalous, root / "ground_truth") if has_masks else {}
    labelled = (LabelledImage(path, folder, mask_of.get(path)) for path, folder in test.items())
    return Category(root.name, tuple(train[NORMAL]), tuple(labelled), has_masks)


def warn_of_unused(folder: Path, used: Collection[str]) -> None:
    """Says which images in a folder are not in one of the folders that are `used`."""
    files, folders = listed(folder)
    unused = [path for path in files if is_named_like_image(path)]
    for other in folders:
        found = (Path(name) for *_, names in os.walk(other) for name in names)
        if other.name not in used and any(map(is_named_like_image, found)):
            unused.append(other)
    if unused:
        logger.warning(
            "%s: images are not used from %s, but from %s alone",
            *(folder, printable(", ".join(path.name for path in unused)), ", ".join(used)),
        )


def _categories(data_dir: Path) -> list[str]:
    if not os.path.isdir(data_dir):
        raise UserError(f"data_dir {data_dir} is not a folder: set --config.data_dir")
    return [folder.name for folder in listed(data_dir)[1] if "train" in names(folder)]


def _category_folder(data_dir: Path, name: str) -> Path:
    categories = _categories(data_dir)
    for folder in listed(data_dir)[1]:
        if composed(folder.name) == composed(name):
            if folder.name not in categories:
                _check_spelling(folder, PARTS)
                raise UserError(f"{folder} has no train/{NORMAL}: put the good images there")
            if folder.name != printable(folder.name):
                raise UserError(
                    f"category {name!r} in data_dir {data_dir}: rename it to printable text"
                )
            return folder
    found = find_categories(data_dir)
    there = ", ".join(other if other == other.strip() else repr(other) for other in found)
    raise UserError(f"category {name!r} is not in data_dir {data_dir}: it has {there}")


def _check_spelling(folder: Path, expected: Iterable[str]) -> None:
    """Raises UserError for a folder inside that is called as expected, but for case and signs."""

    def letters(name: str) -> str:
        return re.sub(r"[\W_]", "", name.casefold())

    for name, right in itertools.product(names(folder), expected):
        is_alike = name[0] != "." and name != right and letters(name) == letters(right)
        if is_alike and os.path.isdir(folder / name):
            raise UserError(f"{folder / name} is not called {right}: rename or move it")


class Hashes(NamedTuple):
    """The SHA-256 of what the files of a category hold."""

    train: str
    pairs: str  # test images and masks
    test: str  # those and their names


def hashes_of(files: Category) -> Hashes:
    """Reads the files, without decoding them. Raises UserError for those it cannot read."""
    train = content_sha256(files.train)
    pairs = content_sha256([image.path for image in files.test] + [i.mask for i in files.test])
    tested = repr((pairs, _test_names(files), files.has_masks))
    return Hashes(train, pairs, hashlib.sha256(tested.encode()).hexdigest())


def _test_names(files: Category) -> list[str]:
    return [printable(f"{image.defect}/{image.path.name}") for image in files.test]


def load_category(data_dir: Path, name: str, size: Size, resize: str = "stretch") -> Split:
    """Decodes a category. Raises UserError as `read_category`, or for files it cannot read."""
    files = read_category(data_dir, name)
    warn_of_unused(data_dir / files.name, PARTS)
    test, masks = [image.path for image in files.test], [image.mask for image in files.test]
    hashes, test_names = hashes_of(files), _test_names(files)
    train, train_regions = load_images(files.train, size, hashes.train, resize)
    tested_images, test_regions = load_images(test, size, hashes.pairs, resize)
    split = Split(
        name=files.name,
        train=train,
        train_names=[printable(path.name) for path in files.train],
        train_sha256=hashes.train,
        test=tested_images,
        test_names=test_names,
        test_sha256=hashes.test,
        labels=np.array([image.defect != NORMAL for image in files.test], bool),
        masks=load_masks(masks, test, size, hashes.pairs, resize) if files.has_masks else None,
        train_regions=train_regions if resize == "fit" else None,
        test_regions=test_regions if resize == "fit" else None,
    )
    if split.masks is not None:
        vanished = np.compress(split.labels & ~split.masks.any((1, 2)), test_names)
        if len(vanished):
            logger.warning(
                "%s: at %dx%d pixels nothing is left of %d masks: their pixels count as normal: %s",
                *(files.name, *height_and_width(size), len(vanished), ", ".join(vanished[:3])),
            )
    return split
