"""Reading images: files to arrays, folders in MVTec AD layout, classification data sets."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """A category as arrays; N training and M test images, uint8 [., size, size, 3]."""

    name: str
    train: np.ndarray
    train_names: Sequence[str]  # of files, or "CLASS/NUMBER"
    train_sha256: str
    test: np.ndarray
    test_names: Sequence[str]  # "DEFECT/FILE" or "CLASS/NUMBER"
    test_sha256: str  # of images, masks and names
    labels: np.ndarray  # [M] bool, true: anomalous
    masks: np.ndarray | None  # [M, size, size] bool, true: anomalous
