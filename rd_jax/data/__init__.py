"""Reading images: files to arrays, folders in MVTec AD layout, classification data sets."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """A category as arrays; N training and M test images, uint8 [., H, W, 3]."""

    name: str
    train: np.ndarray
    train_names: Sequence[str]  # of files, or "CLASS/NUMBER"
    train_sha256: str
    test: np.ndarray
    test_names: Sequence[str]  # "DEFECT/FILE" or "CLASS/NUMBER"
    test_sha256: str  # of images, masks and names
    labels: np.ndarray  # [M] bool, true: anomalous
    masks: np.ndarray | None  # [M, H, W] bool, true: anomalous
    # Where in its image each picture lies, int [., 4] as of `size.Region`; None: everywhere.
    train_regions: np.ndarray | None = None
    test_regions: np.ndarray | None = None


class Joined:
    """Several arrays [., H, W, C] as one, of which only what is asked for is read."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        self._arrays = arrays
        self.starts = np.cumsum([0, *map(len, arrays)])  # of each array, and the end
        self.shape = (len(self), *arrays[0].shape[1:])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        chosen = np.empty((len(indices), *self.shape[1:]), self._arrays[0].dtype)
        of = np.searchsorted(self.starts, indices, "right") - 1
        for i in np.unique(of):
            chosen[of == i] = self._arrays[i][indices[of == i] - self.starts[i]]
        return chosen
