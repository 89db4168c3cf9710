"""Image files to arrays: all decoded once, in parallel, cached on disk."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from rd_jax.data.cache import cached_rows
from rd_jax.data.decode import DECODER_VERSION, Notes, decode_image, warn_of_images
from rd_jax.data.files import each_file
from rd_jax.data.masks import decode_mask, warn_of_masks


def load_images(
    paths: Sequence[Path], size: tuple[int, int], resize: str = "stretch"
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return [N, H, W, 3] uint8 RGB, and the hash of each image before it was resized.

    Raises UserError naming the files that cannot be read.
    """
    pixels, hashes, notes = _load(decode_image, [paths], np.dtype((np.uint8, (*size, 3))), resize)
    warn_of_images(notes, len(paths))
    return pixels, hashes


def load_masks(
    paths: Sequence[Path | None],
    images: Sequence[Path],
    size: tuple[int, int],
    resize: str = "stretch",
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return [N, H, W] bool, true where anomalous, and the hash of each mask before resizing.

    None stands for an image without anomaly. Raises UserError naming the masks that cannot be
    read, or be those of their images: see `read_mask`.
    """
    masks, hashes, notes = _load(decode_mask, [paths, images], np.dtype((np.bool_, size)), resize)
    warn_of_masks(notes, len(paths) - list(paths).count(None))
    return masks, hashes


def _load(
    decode: Callable[..., tuple[np.ndarray, bytes]],
    files: Sequence[Sequence[Path | None]],
    pixels: np.dtype,
    resize: str,
) -> tuple[np.ndarray, tuple[str, ...], Notes]:
    """Return what `decode` makes of one file of each sequence [N] in turn, hashes, and notes."""
    size, paths = pixels.shape[:2], files[0]
    row = np.dtype(
        [
            ("pixels", pixels.base, pixels.shape),
            ("sha256", np.uint8, 32),
            ("levels", np.uint16, 2),
            ("is_damaged", np.bool_),
        ]
    )

    def decoded(part: range) -> np.ndarray:
        notes = Notes()
        read = partial(decode, size=size, resize=resize, notes=notes)
        rows = np.zeros(len(part), row)
        chosen = [of[part.start : part.stop] for of in files]
        for i, (values, sha256) in enumerate(each_file(read, *chosen)):
            rows["pixels"][i], rows["sha256"][i] = values, np.frombuffer(sha256, np.uint8)
            if path := chosen[0][i]:
                rows["levels"][i] = notes.levels.get(path, (0, 0))
                rows["is_damaged"][i] = path in notes.damaged
        return rows

    what = f"{decode.__name__}-{size}-{resize}-v{DECODER_VERSION}"
    every = [path for of in files for path in of]
    rows = cached_rows(every, what, row, len(paths), decoded) if paths else np.zeros(0, row)
    notes = Notes()
    for path, levels, is_damaged in zip(paths, rows["levels"], rows["is_damaged"], strict=True):
        if path and levels.any():
            notes.levels[path] = int(levels[0]), int(levels[1])
        if path and is_damaged:
            notes.damaged.add(path)
    return rows["pixels"], tuple(bytes(sha256).hex() for sha256 in rows["sha256"]), notes
