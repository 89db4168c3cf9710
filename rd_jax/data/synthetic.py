"""A small generated category in MVTec AD layout, for the demo and the tests.

Normal images show a woven cloth whose position, light and noise vary a little; four kinds of
defects are as subtle as those of real categories.
"""

import os
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from rd_jax.data import Category, Source, mvtec
from rd_jax.system.files import cache_folder

DEFECTS = ("scratch", "stain", "missing_thread", "distortion")
PERIOD = 16  # pixels from thread to thread

_VERSION = 3


def weave(
    rng: np.random.Generator, size: int, defect: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return an image [size, size, 3] uint8 and its mask [size, size] bool."""
    y, x = np.mgrid[:size, :size].astype(np.float64)
    offset = rng.uniform(0, 1.5, 2)
    light = rng.uniform(0.97, 1.03)
    noise = rng.normal(0, 0.02, (size, size, 1))
    centre = rng.uniform(0.2 * size, 0.8 * size, 2)
    angle = rng.uniform(0, np.pi)
    along = (x - centre[1]) * np.cos(angle) + (y - centre[0]) * np.sin(angle)
    across = (y - centre[0]) * np.cos(angle) - (x - centre[1]) * np.sin(angle)
    distance = np.hypot(along, across)

    mask = np.zeros((size, size), bool)
    if defect == "distortion":
        radius = rng.uniform(10, 14)
        shift = rng.uniform(4, 6) * np.maximum(0, 1 - distance / radius)
        y, x = y + shift * np.sin(angle), x + shift * np.cos(angle)
        mask = distance < radius
    y, x = y + offset[0], x + offset[1]
    warp, weft = np.abs(np.sin(np.pi * x / PERIOD)), np.abs(np.sin(np.pi * y / PERIOD))
    warp_on_top = (np.floor(x / PERIOD) + np.floor(y / PERIOD)) % 2 == 0
    if defect == "missing_thread":
        thread = np.floor(x / PERIOD) == np.floor(centre[1] / PERIOD)
        mask = warp_on_top & thread & (np.abs(y - centre[0]) < PERIOD)
        warp_on_top &= ~mask
    shade = 0.55 + 0.45 * np.where(warp_on_top, warp, weft)[..., None]
    image = shade * np.where(warp_on_top[..., None], [0.78, 0.66, 0.52], [0.40, 0.42, 0.44])

    if defect == "scratch":
        mask = (np.abs(across) < 1) & (np.abs(along) < rng.uniform(12, 24))
        image = np.where(mask[..., None], image + rng.choice([-0.2, 0.2]), image)
    if defect == "stain":
        mask = distance < rng.uniform(7, 12)
        image = np.where(mask[..., None], image * [0.70, 0.78, 0.92], image)
    image = np.clip(light * image + noise, 0, 1)
    return (255 * image + 0.5).astype(np.uint8), mask


def write_category(
    data_dir: Path, num_train: int = 48, num_test: int = 10, size: int = 96, seed: int = 0
) -> None:
    """Write DATA_DIR/weave: `num_test` good test images and as many of each kind of defect."""
    rng = np.random.default_rng(seed)
    root = data_dir / "weave"

    def write(path: Path, pixels: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    for i in range(num_train):
        write(root / f"train/good/{i:03}.png", weave(rng, size)[0])
    for i in range(num_test):
        write(root / f"test/good/{i:03}.png", weave(rng, size)[0])
        for defect in DEFECTS:
            image, mask = weave(rng, size, defect)
            write(root / f"test/{defect}/{i:03}.png", image)
            write(root / f"ground_truth/{defect}/{i:03}_mask.png", mask * np.uint8(255))


def find_categories(source: Source, chosen: str) -> list[Category]:
    """Return the generated category, which is written into the cache if it is not there."""
    folder = cached_data_dir(cache_folder())
    return mvtec.find_categories(replace(source, data_dir=str(folder)), chosen)


def cached_data_dir(cache: Path) -> Path:
    """Return the folder below `cache` with the generated category, made if missing."""
    folder = cache / f"synthetic-{_VERSION}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            write_category(Path(temporary, "whole"))
            with suppress(OSError):  # another process was faster
                os.rename(Path(temporary, "whole"), folder)
    return folder
