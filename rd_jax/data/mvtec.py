"""Folders in MVTec AD layout: the official data set or a user's own.

DATA_DIR/CATEGORY/train/good/*.png
DATA_DIR/CATEGORY/test/good/*.png
DATA_DIR/CATEGORY/test/DEFECT/*.png
DATA_DIR/CATEGORY/ground_truth/DEFECT/*_mask.png    see masks.py
"""

import itertools
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rd_jax.data import Category, Source, Split, chosen_names, sha256_of
from rd_jax.data.cache import load_images, load_masks
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
from rd_jax.system.errors import UserError, printable
from rd_jax.system.files import user_path

logger = logging.getLogger(__name__)

SUBFOLDERS = ("train", "test", "ground_truth")
NORMAL = "good"


class LabelledImage(NamedTuple):
    """A test image, its defect type ("good" if it has none) and its mask, if any."""

    path: Path
    defect: str
    mask: Path | None

    @property
    def name(self) -> str:
        """Return DEFECT/FILE."""
        return printable(f"{self.defect}/{normalised(self.path.name)}")


class Files(NamedTuple):
    """The files of one category; `has_masks` says whether pixels can be evaluated."""

    name: str
    root: Path
    train: tuple[Path, ...]
    test: tuple[LabelledImage, ...]
    has_masks: bool


def find_categories(source: Source, chosen: str) -> list[Category]:
    """Return the categories in `data_dir` that are chosen, as of `find_files`."""
    data_dir = user_path(source.data_dir)
    return [category_of(files, source, data_dir) for files in find_files(data_dir, chosen)]


def category_of(files: Files, source: Source, *around: Path) -> Category:
    """Return the category of these files; `around` are folders that are the data's besides."""
    folders = sorted({Path(os.path.realpath(folder)) for folder in (*_folders_of(files), *around)})
    return Category(files.name, len(files.train), tuple(folders), partial(_load, files, source))


def find_files(data_dir: Path, chosen: str = "") -> list[Files]:
    """List the files of the categories in `data_dir`: of one, several between commas, or all.

    Warns of images that are not used. Raises UserError if there is no such category, or as
    `read_category`.
    """
    if not os.path.isdir(data_dir):
        raise UserError(f"data_dir {data_dir} is not a folder: set --config.data_dir")
    there = listed(data_dir)
    names = chosen_names(normalised(chosen), there.folders) if chosen else _categories(there)
    for name in names:
        if name not in there.folders:
            known = (n if n == n.strip() else repr(n) for n in _categories(there))
            raise UserError(
                f"category {name!r} is not in data_dir {data_dir}: it has {', '.join(known)}"
            )
    if not chosen:
        _warn_of_unused(there, names)
    return [_read_category(there.folders[name]) for name in names]


def _categories(there: Listing) -> list[str]:
    """Return the names of all categories. Raises UserError if there is none."""
    found = {name: listed(folder, ["train"]) for name, folder in there.folders.items()}
    if categories := [name for name, inside in found.items() if "train" in inside.folders]:
        return categories
    if os.path.isdir(there.folder / "train" / NORMAL):
        raise UserError(
            f"data_dir {there.folder} is itself a category: set --config.data_dir="
            f"{there.folder.parent} --config.category={there.folder.name}"
        )
    listed(there.folder, SUBFOLDERS)  # it may be one but for the spelling
    raise UserError(
        f"data_dir {there.folder} holds no category: expected CATEGORY/train/{NORMAL}/ in it"
    )


def _read_category(root: Path) -> Files:
    """List the files of one category, sorted by path.

    A category without `test` has no test images; without `ground_truth`, no masks. What is hidden
    and what is no image is left out. Raises UserError if its training images are missing, if
    images lie where they would be left out, or if there are masks, but not exactly one for each
    anomalous image.
    """
    if root.name != printable(root.name):
        raise UserError(f"category {root.name!r} in {root.parent}: rename it to printable text")
    there = listed(root, SUBFOLDERS)
    paths = ((name, there.folders[name]) for name in SUBFOLDERS if name in there.folders)
    images = {name: images_by_folder(path, [NORMAL]) for name, path in paths}
    train, test, masks = (images.get(name, {}) for name in SUBFOLDERS)
    for folder, found in train.items():
        if folder != NORMAL and found:
            raise UserError(
                f"{root / 'train' / folder} holds images, but only those of {NORMAL} are trained "
                "on: move them there, or elsewhere"
            )
    if not train.get(NORMAL):
        raise UserError(
            f"{root / 'train' / NORMAL} holds no images ({FORMAT_NAMES}): put the good ones there"
        )
    has_masks = "ground_truth" in images
    anomalous = [path for defect, found in test.items() if defect != NORMAL for path in found]
    every_mask = list(itertools.chain(*masks.values()))
    mask_of = masks_of(anomalous, every_mask, root / "ground_truth") if has_masks else {}
    _warn_of_unused(there, SUBFOLDERS)
    labelled = (
        LabelledImage(path, defect, mask_of.get(path))
        for defect, found in test.items()
        for path in found
    )
    return Files(normalised(root.name), root, tuple(train[NORMAL]), tuple(labelled), has_masks)


def _warn_of_unused(there: Listing, used: Sequence[str]) -> None:
    """Log which images in a folder are not in one of the folders that are `used`."""
    others = [folder for name, folder in there.folders.items() if name not in used]
    unused = [*filter(looks_like_image, there.files), *(o for o in others if any(images_below(o)))]
    if unused:
        logger.warning(
            "%s: images are not used from %s, but from %s alone",
            *(there.folder, printable(", ".join(path.name for path in unused)), ", ".join(used)),
        )


def _folders_of(files: Files) -> set[Path]:
    of_test = [path for image in files.test for path in (image.path, image.mask) if path]
    return {files.root, *(path.parent for path in (*files.train, *of_test))}


def _load(files: Files, source: Source) -> Split:
    """Decode a category. Raises UserError for files that cannot be read."""
    how = source.size, source.resize
    paths, masks = [image.path for image in files.test], [image.mask for image in files.test]
    train, train_hashes = load_images(files.train, *how)
    test, hashes = load_images(paths, *how)
    found, mask_hashes = load_masks(masks, paths, *how) if files.has_masks else (None, ("none",))
    names = tuple(image.name for image in files.test)
    labels = np.array([image.defect != NORMAL for image in files.test], bool)
    vanished = () if found is None else tuple(np.compress(labels & ~found.any((1, 2)), names))
    if vanished:
        logger.warning(
            "%s: at %dx%d pixels nothing is left of %d masks: their pixels count as normal: %s",
            *(files.name, *source.size, len(vanished), ", ".join(vanished[:3])),
        )
    return Split(
        name=files.name,
        train=train,
        train_names=tuple(printable(normalised(path.name)) for path in files.train),
        train_hashes=train_hashes,
        test=test,
        test_names=names,
        test_sha256=sha256_of([*hashes, *mask_hashes, *names]),
        labels=labels,
        masks=found,
    )
