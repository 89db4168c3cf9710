"""Draw anomaly maps as colours over the image, on one scale for all images of a category."""

import io
from functools import cache, lru_cache

import numpy as np
from PIL import Image
from scipy import ndimage, sparse

from rd_jax.data.decode import jpeg

_OPACITIES = np.round(0.44 * np.arange(256)).astype(np.uint8)  # from 0 to 44 %
_CONTOUR = np.array([255, 0, 200], np.uint8)  # rare on products, and not a colour of the scale
_SIDE = 500  # a contour is a pixel wide for so many pixels of the longer side, at least two


@cache
def _colours() -> np.ndarray:
    """Return [256, 3] uint8, from blue to red, without the nearly black ends."""
    from matplotlib import colormaps  # here, since it is slow to import

    return np.round(255 * colormaps["turbo"](np.linspace(0.1, 0.92, 256))[:, :3]).astype(np.uint8)


def strength(anomaly_map: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return the map's values on the scale, uint8: 0 up to `low`, 255 from `high`."""
    return np.clip(255 * (anomaly_map - low) / (high - low), 0, 255).astype(np.uint8)


def resized_map(anomaly_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the map [h, w] as [*size] float32, bilinear, with its maximum at the same place."""
    anomaly_map = np.asarray(anomaly_map, np.float32)
    (h, w), (height, width) = anomaly_map.shape, size
    resized = _bilinear(h, height) @ (anomaly_map @ _bilinear(w, width).T)
    np.minimum(resized, anomaly_map.max(), out=resized)  # rounding may exceed the maximum
    row, column = np.unravel_index(anomaly_map.argmax(), anomaly_map.shape)
    place = (2 * row + 1) * height // (2 * h), (2 * column + 1) * width // (2 * w)
    resized[place] = anomaly_map.max()
    return resized


@lru_cache(64)
def _bilinear(count: int, wanted: int) -> sparse.csr_array:
    """Return Pillow's weights [wanted, count] along an axis. Pillow itself is 4 times slower."""
    reach = max(count / wanted, 1)
    places = (np.arange(wanted)[:, None] + 0.5) * count / wanted - 0.5
    near = np.ceil(places - reach) + np.arange(int(2 * reach) + 1)
    weights = np.maximum(1 - abs(near - places) / reach, 0) * (near >= 0) * (near < count)
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    columns, rows = near.clip(0, count - 1).astype(int), np.arange(wanted + 1) * near.shape[1]
    return sparse.csr_array((weights.ravel(), columns.ravel(), rows), (wanted, count))


def overlay(
    image: np.ndarray, anomaly_map: np.ndarray, low: float, high: float, is_anomalous: bool | None
) -> np.ndarray:
    """Return the image [H, W, 3] uint8 under the map [h, w] in colours.

    Up to `low` there is no colour. From there to `high` the colour grows, and the image stays
    visible. In an anomalous image a contour surrounds the pixels above `low`.
    """
    values = resized_map(anomaly_map, image.shape[:2])
    shown = coloured(image, strength(values, low, high))
    if is_anomalous:
        shown[contour(values > low)] = _CONTOUR
    return shown


def drawn(file: bytes, values: np.ndarray, ends: tuple[float, float], marked: bool) -> bytes:
    """Return a JPEG file: the `overlay` of the picture in `file`."""
    with Image.open(io.BytesIO(file)) as image:
        return jpeg(overlay(np.asarray(image), values, *ends, marked))


def coloured(image: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Return the image [H, W, 3] uint8 under the colours of a `strength` uint8 [H, W]."""
    # Pillow blends in 8 bits. Floats would take ten times the memory.
    colours, background, opacity = map(
        Image.fromarray, (_colours()[level], image, _OPACITIES[level])
    )
    return np.array(Image.composite(colours, background, opacity))


def contour(mask: np.ndarray) -> np.ndarray:
    """Return the inner border of a mask [H, W] bool, two pixels wide, or wider if it is large."""
    width = max(2, max(mask.shape) // _SIDE)
    inside = ndimage.minimum_filter(mask.view(np.uint8), 2 * width + 1, mode="constant")
    return mask & (inside == 0)
