"""Where images come from: one file for each kind of source, decoding, cache, order of images."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Source:
    """Where images come from, and what size they get."""

    data_dir: str  # "synthetic", or a path: of categories, or of data sets of TFDS
    dataset: str  # "digits" or the name of a data set of TFDS; empty: folders of images
    size: tuple[int, int]
    resize: str  # "stretch" or "fit"


@dataclass(frozen=True, eq=False)
class Split:
    """A category as arrays; N training and M test images, uint8 [., H, W, 3].

    A hash of an image is the SHA-256 of its decoded pixels before they were resized.
    """

    name: str
    train: np.ndarray  # may be memory-mapped
    train_names: tuple[str, ...]  # of files, or "CLASS/NUMBER"
    train_hashes: tuple[str, ...]
    test: np.ndarray
    test_names: tuple[str, ...]  # "DEFECT/FILE" or "CLASS/NUMBER"
    test_sha256: str  # of hashes, masks and names
    labels: np.ndarray  # [M] bool, true: anomalous
    masks: np.ndarray | None  # [M, H, W] bool, true: anomalous

    @property
    def train_sha256(self) -> str:
        """Return one hash of all training images, in order."""
        return sha256_of(self.train_hashes)


@dataclass(frozen=True)
class Category:
    """A category whose files were listed and not decoded yet."""

    name: str
    num_train: int
    folders: tuple[Path, ...]  # real ones that its images lie in; none if a package has them
    load: Callable[[], Split]  # decodes, or finds what was decoded before


def chosen_names(text: str, there: Collection[str]) -> list[str]:
    """Return the names in a text: all that are there, one, whatever commas it has, or several."""
    if not text or text in there:
        return [text] if text else list(there)
    return list(dict.fromkeys(filter(None, map(str.strip, text.split(","))))) or [text]


def sha256_of(texts: Sequence[str]) -> str:
    """Return one hash of several texts, in order."""
    return hashlib.sha256(ascii(tuple(texts)).encode()).hexdigest()


class Joined:
    """Several arrays [., H, W, C] as one, of which only what is asked for is read."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        self._arrays = arrays
        self._starts = np.cumsum([0, *map(len, arrays)])  # of each array, and the end
        self.shape = (int(self._starts[-1]), *arrays[0].shape[1:])

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        of = np.searchsorted(self._starts, indices, "right") - 1
        inside = indices - self._starts[of]
        return np.stack([self._arrays[i][k] for i, k in zip(of, inside, strict=True)])
