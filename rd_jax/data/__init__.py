"""Reading images: files to arrays, folders in MVTec AD layout, classification data sets."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """A category as arrays; N training and M test images, uint8 [., size, size, 3]."""

    name: str
    train: np.ndarray
    train_sha256: str  # of the training images
    test: np.ndarray
    test_names: Sequence[str]  # of the test images: "DEFECT/FILE" or "CLASS/NUMBER"
    labels: np.ndarray  # [M] bool, true: anomalous
    masks: np.ndarray | None  # [M, size, size] bool, true: anomalous
