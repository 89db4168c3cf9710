"""Make a category from rows of images, for all sources of image files."""

import logging
import os
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np

from rd_jax.data import NORMAL, Category, Row, Source, Split, sha256_of
from rd_jax.data.cache import load_images, load_masks
from rd_jax.data.copies import warn_of_copies_in_test
from rd_jax.data.folders import letters, normalised
from rd_jax.system.errors import first_few, printable

logger = logging.getLogger(__name__)

_NAMES_OF_NORMAL = ("good", "ok", "normal")
SPLITS = ("train", "validation", "test")


@cache  # many rows share few labels
def label_of(name: str) -> str:
    """Return NORMAL for good, ok, normal and 0, in capitals or not, else the defect's name."""
    return NORMAL if letters(name) in (*_NAMES_OF_NORMAL, "0") else normalised(name)


def name_of(row: Row) -> str:
    """Return LABEL/FILE."""
    return printable(f"{row.label}/{normalised(row.image.name)}")


def category_of(name: str, rows: Sequence[Row], source: Source, *around: Path) -> Category:
    """Return the category of these rows. `around` are further folders of the data.

    Warns of kinds of defects with names close to those of normal images.
    """
    for label in sorted({row.label for row in rows} - {NORMAL}):
        if letters(label).startswith(_NAMES_OF_NORMAL):
            logger.warning(
                "%s: %s counts as a kind of defect, since normal images are called %s",
                *(name, printable(label), ", ".join(_NAMES_OF_NORMAL)),
            )
    train, validation, test = ([row for row in rows if row.split == split] for split in SPLITS)
    parents = {os.path.dirname(path) for row in rows for path in (row.image, *row.masks)}
    folders = sorted({Path(os.path.realpath(folder)) for folder in (*parents, *map(str, around))})
    num_train, num_validation = len(train) + len(validation), len(validation)
    load = partial(_load, name, (*train, *validation), num_validation, test, source)
    return Category(name, num_train, tuple(folders), load, num_validation, tuple(rows))


def _load(
    name: str, train_rows: Sequence[Row], num_validation: int, rows: Sequence[Row], source: Source
) -> Split:
    """Decode a category. Raises UserError for files that cannot be read."""
    how = source.size, source.resize
    paths, masks = [row.image for row in rows], [row.masks for row in rows]
    train, train_hashes = load_images([row.image for row in train_rows], *how)
    test, hashes = load_images(paths, *how)
    found, mask_hashes = load_masks(masks, paths, *how) if any(masks) else (None, ("none",))
    names = tuple(map(name_of, rows))
    warn_of_copies_in_test(name, train_hashes, hashes, names)
    groups = tuple(row.group for row in train_rows)
    labels = np.array([row.label != NORMAL for row in rows], bool)
    empty = () if found is None else tuple(np.compress(labels & ~found.any((1, 2)), names))
    if empty:
        logger.warning(
            "%s: %d of %d masks are empty, or too small for %dx%d pixels. Their pixels count as "
            "normal: %s",
            *(name, len(empty), labels.sum(), *source.size),
            first_few(empty),
        )
    return Split(
        name=name,
        train=train,
        train_names=tuple(printable(normalised(row.image.name)) for row in train_rows),
        train_hashes=train_hashes,
        test=test,
        test_names=names,
        test_sha256=sha256_of([*hashes, *mask_hashes, *names]),
        labels=labels,
        masks=found,
        num_validation=num_validation,
        groups=groups if any(groups) else (),
    )
