"""Sizes of images and maps, and where in them the picture lies that they were made of."""

from typing import Any, Literal

import numpy as np

Size = int | tuple[int, int]  # pixels: of a square, or (height, width)
Resize = Literal["stretch", "fit"]
Region = tuple[int, int, int, int]  # top, left, height, width


def height_and_width(size: Size) -> tuple[int, int]:
    """(height, width) in pixels."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def region_of(picture: tuple[int, int], size: tuple[int, int], resize: str) -> Region:
    """Where a picture (height, width) comes to lie in an image of `size`.

    Everywhere by "stretch"; by "fit" in the middle, with its aspect ratio.
    """
    if resize == "stretch":
        return 0, 0, *size
    scale = min(there / own for own, there in zip(picture, size, strict=True))
    height, width = (
        max(1, min(round(scale * own), there)) for own, there in zip(picture, size, strict=True)
    )
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width


def inside(regions: Any, size: tuple[int, int]) -> Any:
    """[N, H, W] bool, true within the `Region` of each image, int [N, 4] of NumPy or JAX."""
    top, left, height, width = (regions[:, i, None, None] for i in range(4))
    y, x = np.arange(size[0])[:, None], np.arange(size[1])
    return (y >= top) & (y < top + height) & (x >= left) & (x < left + width)


def cropped(image: np.ndarray, region: Region) -> np.ndarray:
    """What of an image or map [H, W, ...] lies within the region."""
    top, left, height, width = region
    return image[top : top + height, left : left + width]
