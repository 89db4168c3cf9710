"""Folders in MVTec AD layout: the official data set or a user's own.

DATA_DIR/CATEGORY/train/good/*.png
DATA_DIR/CATEGORY/test/good/*.png
DATA_DIR/CATEGORY/test/DEFECT/*.png
DATA_DIR/CATEGORY/ground_truth/DEFECT/*_mask.png    see pairs.py
"""

import itertools
import logging
import os
import re
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rd_jax.data import Category, Source, Split, sha256_of
from rd_jax.data.folders import Listing, images_by_folder, listed, names, normalised
from rd_jax.data.formats import is_named_like_image
from rd_jax.data.headers import FORMAT_NAMES
from rd_jax.data.images import load_images, load_masks
from rd_jax.data.pairs import masks_of
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
    return [
        Category(files.name, len(files.train), _folders_of(files), partial(_load, files, source))
        for files in find_files(user_path(source.data_dir), chosen)
    ]


def find_files(data_dir: Path, chosen: str = "") -> list[Files]:
    """List the files of the categories in `data_dir`: of one, several between commas, or all.

    Warns of images that are not used. Raises UserError if there is no such category, if a folder
    would be one but for the spelling of train, or as `read_category`.
    """
    if not os.path.isdir(data_dir):
        raise UserError(f"data_dir {data_dir} is not a folder: set --config.data_dir")
    there = listed(data_dir)
    if chosen:
        roots = [_root_of(there, name) for name in chosen_names(chosen, there.folders)]
    else:
        roots = [there.folders[name] for name in _categories(there)]
        warn_of_unused(there, [root.name for root in roots])
    return list(map(read_category, roots))


def chosen_names(text: str, there: Collection[str]) -> list[str]:
    """Return the names in a text: one that is there, whatever commas it has, or several."""
    if "," not in text or normalised(text) in there:
        return [text]
    several = (normalised(name.strip()) for name in text.split(","))
    return list(dict.fromkeys(filter(None, several))) or [text]


def read_category(root: Path) -> Files:
    """List the files of one category, sorted by path.

    A category without `test` has no test images; without `ground_truth`, no masks. What is hidden
    and what is no image is left out. Raises UserError if its training images are missing, if
    images lie where they would be left out, or if there are masks, but not exactly one for each
    anomalous image.
    """
    there = listed(root)
    _check_spelling(there.folders.values(), SUBFOLDERS)
    for path in there.files:
        if path.name in SUBFOLDERS:
            raise UserError(f"{path} is not a folder: put images into one of this name")
    images = {name: images_by_folder(root / name) for name in SUBFOLDERS if name in there.folders}
    train, test = images.get("train", {}), images.get("test", {})
    for subfolder in ("train", "test"):
        inner = (root / subfolder / name for name in images.get(subfolder, ()))
        _check_spelling(inner, [NORMAL])
    for folder, found in train.items():
        if folder != NORMAL and found:
            raise UserError(
                f"{root / 'train' / folder} holds images, but only those of {NORMAL} are trained "
                "on: move them there, or elsewhere"
            )
    if not train.get(NORMAL):
        raise UserError(f"{root / 'train' / NORMAL} holds no images ({FORMAT_NAMES})")
    masks = images.get("ground_truth")
    anomalous = [path for defect, found in test.items() if defect != NORMAL for path in found]
    mask_of = {} if masks is None else masks_of(anomalous, masks, root / "ground_truth")
    warn_of_unused(there, SUBFOLDERS)
    return Files(
        name=normalised(root.name),
        root=root,
        train=tuple(train[NORMAL]),
        test=tuple(
            LabelledImage(path, defect, mask_of.get(path))
            for defect, found in test.items()
            for path in found
        ),
        has_masks=masks is not None,
    )


def warn_of_unused(there: Listing, used: Sequence[str]) -> None:
    """Log which images in a folder are not in one of the folders that are `used`."""
    unused = [path for path in there.files if is_named_like_image(path)]
    for other in there.folders.values():
        if other.name not in used:
            found = (Path(name) for *_, inner in os.walk(other) for name in inner)
            unused += [other] if any(map(is_named_like_image, found)) else []
    if unused:
        logger.warning(
            "%s: images are not used from %s, but from %s alone",
            *(there.folder, printable(", ".join(path.name for path in unused)), ", ".join(used)),
        )


def _categories(there: Listing) -> list[str]:
    """Return the names of all categories. Raises UserError if there is none."""
    categories = [name for name, folder in there.folders.items() if "train" in names(folder)]
    for name, folder in there.folders.items():
        if name not in categories:
            _check_spelling((folder / inner for inner in names(folder)), ["train"])
    if categories:
        return categories
    data_dir = there.folder
    if os.path.isdir(data_dir / "train" / NORMAL):
        raise UserError(
            f"data_dir {data_dir} is itself a category: set --config.data_dir="
            f"{data_dir.parent} --config.category={data_dir.name}"
        )
    _check_spelling(there.folders.values(), SUBFOLDERS)
    raise UserError(
        f"data_dir {data_dir} holds no category: expected CATEGORY/train/{NORMAL}/ in it"
    )


def _root_of(there: Listing, name: str) -> Path:
    root = there.folders.get(normalised(name))
    if not root:
        known = (n if n == n.strip() else repr(n) for n in _categories(there))
        raise UserError(
            f"category {name!r} is not in data_dir {there.folder}: it has {', '.join(known)}"
        )
    if "train" not in names(root):
        _check_spelling((root / inner for inner in names(root)), SUBFOLDERS)
        raise UserError(f"{root} has no train/{NORMAL}: put the good images there")
    if root.name != printable(root.name):
        raise UserError(
            f"category {name!r} in data_dir {there.folder}: rename it to printable text"
        )
    return root


def _check_spelling(folders: Iterable[Path], expected: Sequence[str]) -> None:
    """Raise UserError for a folder that is called as expected, but for case and signs."""

    def letters(name: str) -> str:
        return re.sub(r"[\W_]", "", name.casefold())

    for path, right in itertools.product(folders, expected):
        is_alike = path.name[0] != "." and path.name != right
        if is_alike and letters(path.name) == letters(right) and os.path.isdir(path):
            raise UserError(f"{path} is not called {right}: rename or move it")


def _folders_of(files: Files) -> tuple[Path, ...]:
    """Return the real folders that hold the category, wherever links lead."""
    of_test = (path.parent for image in files.test for path in (image.path, image.mask) if path)
    parents = dict.fromkeys([*(path.parent for path in files.train), *of_test])
    folders = [files.root.parent, files.root, *parents]
    return tuple(dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders))


def _load(files: Files, source: Source) -> Split:
    """Decode a category. Raises UserError for files that cannot be read."""
    size, resize = source.size, source.resize
    test, masks = [image.path for image in files.test], [image.mask for image in files.test]
    train_images, train_hashes = load_images(files.train, size, resize)
    test_images, hashes = load_images(test, size, resize)
    found, mask_hashes = (
        load_masks(masks, test, size, resize) if files.has_masks else (None, ("no masks",))
    )
    names = tuple(image.name for image in files.test)
    labels = np.array([image.defect != NORMAL for image in files.test], bool)
    if found is not None:
        vanished = np.compress(labels & ~found.any((1, 2)), names)
        if len(vanished):
            logger.warning(
                "%s: at %dx%d pixels nothing is left of %d masks: their pixels count as normal: %s",
                *(files.name, *size, len(vanished), ", ".join(vanished[:3])),
            )
    return Split(
        name=files.name,
        train=train_images,
        train_names=tuple(printable(normalised(path.name)) for path in files.train),
        train_hashes=train_hashes,
        test=test_images,
        test_names=names,
        test_sha256=sha256_of([*hashes, *mask_hashes, *names]),
        labels=labels,
        masks=found,
    )
