"""Images: one file for each kind of source, decoding, cache, order of images."""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from rd_jax.system.errors import UserError

T = TypeVar("T")
NORMAL = "good"  # the label of a normal image; other labels are kinds of defects


@dataclass(frozen=True)
class Source:
    """The place of images, and the size that they get."""

    data_dir: str  # "synthetic", or a path: of categories, a table, or data sets of TFDS
    dataset: str  # "digits" or the name of a data set of TFDS; empty: files of images
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
    num_validation: int = 0  # how many of the last training images are held out for validation
    groups: tuple[str, ...] = ()  # of each training image, if its source has groups

    @property
    def train_sha256(self) -> str:
        """Return one hash of all training images, in order, and of how they belong together."""
        validation = (f"{self.num_validation} for validation",) if self.num_validation else ()
        return sha256_of(self.train_hashes + self.groups + validation)


class Row(NamedTuple):
    """The file of an image, and what is known of it."""

    image: Path
    split: str  # "train", "validation" or "test"
    label: str = NORMAL
    masks: tuple[Path, ...] = ()  # of an anomalous image; pixels count that any of them marks
    group: str = ""


@dataclass(frozen=True)
class Category:
    """A category whose files are listed, but not decoded yet."""

    name: str
    num_train: int  # with those for validation
    folders: tuple[Path, ...]  # real paths of its images' folders; none if a package has them
    load: Callable[[], Split]  # decodes, or finds what was decoded before
    num_validation: int = 0  # as of Split
    rows: tuple[Row, ...] = ()  # if it has files


def chosen_names(text: str, there: Collection[str]) -> list[str]:
    """Return the names that a text chooses: all if empty, one (commas allowed), or several."""
    if not text or text in there:
        return [text] if text else list(there)
    return list(dict.fromkeys(filter(None, map(str.strip, text.split(","))))) or [text]


def chosen_of(found: Mapping[str, T], text: str, place: Path) -> dict[str, T]:
    """Return the items that `chosen_names` chooses. Raise UserError for an unknown name."""
    names = chosen_names(text, found)
    for name in (name for name in names if name not in found):
        known = ", ".join(n if n == n.strip() else repr(n) for n in found)
        raise UserError(f"category {name!r} is not in data_dir {place}: it has {known}")
    return {name: found[name] for name in names}


def sha256_of(texts: Sequence[str]) -> str:
    """Return one hash of several texts, in order."""
    return hashlib.sha256(ascii(tuple(texts)).encode()).hexdigest()


class Joined:
    """Several arrays [., H, W, C] as one. Only the rows that are asked for are read."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        self._arrays = arrays
        self._starts = np.cumsum([0, *map(len, arrays)])  # of each array, and the end
        self.shape = (int(self._starts[-1]), *arrays[0].shape[1:])

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        of = np.searchsorted(self._starts, indices, "right") - 1
        inside = indices - self._starts[of]
        return np.stack([self._arrays[i][k] for i, k in zip(of, inside, strict=True)])
