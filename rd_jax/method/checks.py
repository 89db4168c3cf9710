"""Refuse wrong arguments of public functions, in one line that says what is right."""

from collections.abc import Iterable
from typing import Any

import numpy as np


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    if value not in (choices := tuple(choices)):
        raise ValueError(f"{name}={value!r}: must be one of {choices}")


def check_fraction(name: str, value: float) -> None:
    """Raise ValueError unless the value is in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"{name}={value!r}: must be at least 0 and below 1")


def check_images(images: Any) -> None:
    """Raise ValueError unless these are uint8 images that networks take; they may be traced."""
    shape, dtype = np.shape(images), getattr(images, "dtype", type(images).__name__)
    is_image = len(shape) == 4 and shape[3] == 3 and not (shape[1] % 32 or shape[2] % 32)
    if dtype != np.uint8 or not is_image or 0 in shape:
        raise ValueError(
            f"images are {dtype} {list(shape)}: must be uint8 [B, H, W, 3] with at least one "
            "image, and H and W multiples of 32"
        )
