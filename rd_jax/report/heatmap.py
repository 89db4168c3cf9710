"""Anomaly maps as colours over the image, on one scale for all images of a category."""

from functools import cache

import numpy as np
from PIL import Image

_OPACITIES = np.round(0.7 * np.arange(256)).astype(np.uint8)  # from nothing to 70%


@cache
def _colours() -> np.ndarray:
    """[256, 3] uint8, from blue to red, without the nearly black ends."""
    from matplotlib import colormaps  # here, since it reads the environment: see `settle`

    return np.round(255 * colormaps["turbo"](np.linspace(0.1, 0.92, 256))[:, :3]).astype(np.uint8)


def strength(anomaly_map: np.ndarray, low: float, high: float) -> np.ndarray:
    """The map's place on the scale from `low` (0) to `high` (1), clipped; any shape, float32."""
    return np.clip((np.asarray(anomaly_map, np.float32) - low) / (high - low), 0, 1)


def resized_map(anomaly_map: np.ndarray, width: int, height: int) -> np.ndarray:
    """[h, w] -> [height, width] float32, bilinear."""
    image = Image.fromarray(np.asarray(anomaly_map, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def overlay(image: np.ndarray, anomaly_map: np.ndarray, low: float, high: float) -> np.ndarray:
    """The map [h, w] in colours over the image [H, W, 3] uint8, at the image's resolution.

    The more anomalous, the more colour: what is calm shows the image itself.
    """
    height, width = image.shape[:2]
    value = strength(resized_map(anomaly_map, width, height), low, high)
    level = np.round(255 * value).astype(np.uint8)
    # Pillow blends in 8 bits: a photograph in floats would take ten times the memory.
    colours, background, opacity = map(
        Image.fromarray, (_colours()[level], image, _OPACITIES[level])
    )
    return np.asarray(Image.composite(colours, background, opacity))
