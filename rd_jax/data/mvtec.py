"""Folders in MVTec AD layout: the official data set or a user's own.

DATA_DIR/CATEGORY/train/good/*.png
DATA_DIR/CATEGORY/test/good/*.png
DATA_DIR/CATEGORY/test/DEFECT/*.png
DATA_DIR/CATEGORY/ground_truth/DEFECT/*_mask.png
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rd_jax.data import Split
from rd_jax.data.images import IMAGE_SUFFIXES, content_sha256, load_images, load_masks
from rd_jax.errors import UserError

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


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def _folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def find_categories(data_dir: Path) -> list[str]:
    """The names of all categories in `data_dir`, sorted. Raises UserError if there is none."""
    if not data_dir.is_dir():
        raise UserError(f"data_dir {data_dir} is not a folder: set --config.data_dir")
    names = [p.name for p in _folders_in(data_dir) if (p / "train" / NORMAL).is_dir()]
    if not names and (data_dir / "train" / NORMAL).is_dir():
        raise UserError(
            f"data_dir {data_dir} is itself a category: set --config.data_dir="
            f"{data_dir.parent} --config.category={data_dir.name}"
        )
    if not names:
        raise UserError(
            f"data_dir {data_dir} holds no category: expected CATEGORY/train/{NORMAL}/ in it"
        )
    return names


def read_category(data_dir: Path, name: str) -> Category:
    """Lists the files of one category, sorted by path.

    A category without `test` has no test images; without `ground_truth`, no masks. Raises
    UserError if the category or its training images are missing, or if an anomalous image lacks
    its mask while `ground_truth` exists.
    """
    categories = find_categories(data_dir)
    if name not in categories:
        raise UserError(
            f"category {name!r} is not in data_dir {data_dir}: it has {', '.join(categories)}"
        )
    root = data_dir / name
    train = _images_in(root / "train" / NORMAL)
    if not train:
        raise UserError(f"{root / 'train' / NORMAL} holds no images ({_suffixes()})")
    test: list[LabelledImage] = []
    has_masks = (root / "ground_truth").is_dir()
    for folder in _folders_in(root / "test") if (root / "test").is_dir() else []:
        for path in _images_in(folder):
            mask = None
            if has_masks and folder.name != NORMAL:
                mask = root / "ground_truth" / folder.name / f"{path.stem}_mask.png"
                if not mask.is_file():
                    raise UserError(
                        f"mask {mask} of test image {path} is missing: add it, or remove "
                        f"{root / 'ground_truth'} to evaluate images alone"
                    )
            test.append(LabelledImage(path, folder.name, mask))
    return Category(name, tuple(train), tuple(test), has_masks)


def _suffixes() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))


def load_category(data_dir: Path, name: str, size: int) -> Split:
    """Decodes a category. Raises UserError as `read_category`, or for files it cannot read."""
    files = read_category(data_dir, name)
    test, masks = [image.path for image in files.test], [image.mask for image in files.test]
    train_sha256, test_sha256 = content_sha256(files.train), content_sha256(test)
    masks_sha256 = content_sha256([mask for mask in masks if mask is not None])
    return Split(
        name=name,
        train=load_images(files.train, size, train_sha256),
        train_names=[path.name for path in files.train],
        train_sha256=train_sha256,
        test=load_images(test, size, test_sha256),
        test_names=[f"{image.defect}/{image.path.name}" for image in files.test],
        test_sha256=hashlib.sha256(f"{test_sha256}{masks_sha256}".encode()).hexdigest(),
        labels=np.array([image.defect != NORMAL for image in files.test], bool),
        masks=load_masks(masks, size, masks_sha256) if files.has_masks else None,
    )
