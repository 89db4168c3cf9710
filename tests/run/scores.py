"""Images of a category and what the library's own scorer says of them."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import rd_jax
from rd_jax.data import Split
from rd_jax.data.order import holdout_indices
from rd_jax.data.sources import Source, find_categories

SIZE = 32


def split_of(data_dir: Path, category: str) -> Split:
    """The images of a category, decoded."""
    source = Source(data_dir=str(data_dir), dataset="", size=(SIZE, SIZE), resize="stretch")
    (found,) = find_categories(source, category)
    return found.load()


def held_out(split: Split) -> np.ndarray:
    """The half of the training images that is kept aside with seed 0."""
    return np.asarray(split.train[holdout_indices(0, 0.5, len(split.train))[1]])


@cache
def _scorer(sigma: float, reduction: str) -> Any:
    return rd_jax.make_scorer(rd_jax.Model("tiny", dtype=np.float32), sigma, reduction)


def maps_and_scores(
    student: Any, images: np.ndarray, sigma: float = 4.0, reduction: str = "max"
) -> tuple[np.ndarray, np.ndarray]:
    """By the library's own scorer in float32; it compiles one batch size."""
    batch = np.zeros((16, *images.shape[1:]), np.uint8)
    batch[: len(images)] = images
    maps, scores = _scorer(sigma, reduction)(rd_jax.load_teacher("tiny", "random"), student, batch)
    return np.asarray(maps)[: len(images)], np.asarray(scores)[: len(images)]
