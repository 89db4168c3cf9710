"""Group training images that belong together: equal ones, near copies, named groups."""

import logging
from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rd_jax.data import Split
from rd_jax.system.errors import first_few

logger = logging.getLogger(__name__)

_NEAR = 0.2  # of the distance within which a tenth of the images lie: see docs/measured.md
_ROWS = 256  # rows of distances at a time
_MOST = 10_000  # images; more are compared only by "near", since time grows with the square


@cache  # a split is compared by identity; its seeds and its evaluation share the result
def groups_of(split: Split, by: str) -> np.ndarray:
    """Return, for each training image [N], the first image of its group.

    A group has images of equal content, of one name in `groups` and, by "near", near copies. Log
    how many images are copies, and warn of near copies in different groups.
    """
    hashes, count = split.train_hashes, len(split.train)
    names = [name or f"\0{i}" for i, name in enumerate(split.groups or [""] * count)]
    pairs = np.stack([np.tile(np.arange(count), 2), np.append(*map(first_alike, (hashes, names)))])
    is_compared = by == "near" or count <= _MOST
    near = near_copies(split.train).T if is_compared else np.zeros((2, 0), int)
    groups = _joined(count, pairs)
    if copies := count - len(set(hashes)):
        logger.info("%s: %d training images are copies, which count once", split.name, copies)
    if by == "near":
        return _joined(count, np.concatenate([pairs, near], 1))
    if others := [(a, b) for a, b in near.T if groups[a] != groups[b]]:
        shown = (" and ".join(split.train_names[i] for i in pair) for pair in others[:3])
        logger.warning(
            "%s: %d pairs of training images are nearly equal, such as %s: if they show the same "
            "part, the threshold is too low; hold them out together by --config.group_by=near",
            *(split.name, len(others), "; ".join(shown)),
        )
    return groups


def first_alike(texts: Sequence[str]) -> np.ndarray:
    """Return, for each text [N], the place of the first equal text."""
    _, first, of = np.unique(texts, return_index=True, return_inverse=True)
    return first[of]


def _joined(count: int, pairs: np.ndarray) -> np.ndarray:
    edges = coo_array((np.ones(pairs.shape[1]), pairs), (count, count))
    return first_alike(connected_components(edges, directed=False)[1])


def near_copies(images: np.ndarray) -> np.ndarray:
    """Return [P, 2] pairs of images [N, H, W, 3] that are far more alike than others.

    It compares means of 16 x 16 fields, and ignores brightness and contrast.
    """
    shape = 16, images.shape[1] // 16, 16, images.shape[2] // 16 * 3
    small = np.stack([np.float32(image.reshape(shape).mean((1, 3)).ravel()) for image in images])
    small -= small.mean(1, keepdims=True)
    small /= np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-6)
    some = small[:: -(-len(small) // 100)]
    usual = np.median(np.quantile(1 - some @ small.T, 0.1, axis=1))  # half the squared distance
    found = []
    for start in range(0, len(small), _ROWS):
        likeness = small[start : start + _ROWS] @ small[start:].T
        found.append(start + np.argwhere(np.triu(likeness > 1 - _NEAR**2 * usual, 1)))
    return np.concatenate(found)


def warn_of_copies_in_test(
    category: str, train: Sequence[str], test: Sequence[str], test_names: Sequence[str]
) -> None:
    """Log which test images are training images, too, by their hashes."""
    if found := np.compress(np.isin(test, train), test_names).tolist():
        logger.warning(
            "%s: %d of %d test images are training images, too, so that figures are too good: %s: "
            "remove them from one of the two",
            *(category, len(found), len(test), first_few(found)),
        )
