"""Image files to arrays: all decoded once, in parallel, cached on disk."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from rd_jax.data.cache import cached_array
from rd_jax.data.decode import (
    DECODER_VERSION,
    Notes,
    decode_image,
    decode_mask,
    warn_of_dark_images,
    warn_of_levels,
)
from rd_jax.data.files import each_file
from rd_jax.data.hashes import content_sha256
from rd_jax.method.size import Region, Size, height_and_width


def _load(
    decode: Callable[..., tuple[np.ndarray, Region]],
    files: Sequence[Sequence[Path | None]],
    shape: tuple[int, ...],
    dtype: type,
    sha256: str | None,
    resize: str,
) -> tuple[np.ndarray, np.ndarray, Notes]:
    """What `decode` makes of one file of each sequence [N] in turn: [N, *shape], regions, notes.

    The cache is keyed by what the files hold, so that an edited file is never served stale.
    """
    num_files = len(files[0])
    if not num_files:
        return np.empty((0, *shape), dtype), np.empty((0, 4), np.int32), {}
    row = np.dtype([("pixels", dtype, shape), ("region", np.int32, 4), ("note", np.uint16, 2)])

    def decoded(part: range) -> np.ndarray:
        chosen = [paths[part.start : part.stop] for paths in files]
        notes: Notes = {}
        rows = np.empty(len(part), row)
        read = partial(decode, size=shape[:2], notes=notes, resize=resize)
        for i, (pixels, region) in enumerate(each_file(read, *chosen)):
            rows["pixels"][i], rows["region"][i] = pixels, region
        rows["note"] = [notes.get(path, (0, 0)) if path else (0, 0) for path in chosen[0]]
        return rows

    sha256 = sha256 or content_sha256([path for paths in files for path in paths])
    key = f"{sha256}-{decode.__name__}-{shape[0]}x{shape[1]}-{resize}-v{DECODER_VERSION}"
    rows = cached_array(key, (num_files,), row, decoded)
    notes = dict(zip(files[0], map(tuple, rows["note"].tolist()), strict=True))
    noted = {path: note for path, note in notes.items() if path and note[1]}
    return rows["pixels"], rows["region"], noted


def load_images(
    paths: Sequence[Path], size: Size, sha256: str | None = None, resize: str = "stretch"
) -> tuple[np.ndarray, np.ndarray]:
    """[N, H, W, 3] uint8 RGB, and where in them the pictures lie, int32 [N, 4].

    `sha256` is their `content_sha256`, if it is known. Raises UserError naming the files that
    cannot be read.
    """
    shape = (*height_and_width(size), 3)
    images, regions, notes = _load(decode_image, [paths], shape, np.uint8, sha256, resize)
    warn_of_dark_images(notes, len(paths))
    return images, regions


def load_masks(
    paths: Sequence[Path | None],
    images: Sequence[Path],
    size: Size,
    sha256: str | None = None,
    resize: str = "stretch",
) -> np.ndarray:
    """[N, H, W] bool, true where anomalous; None stands for an image without anomaly.

    `sha256` is the `content_sha256` of masks and images, if it is known. Raises UserError naming
    the masks that cannot be read, or be those of their images: see `read_mask`.
    """
    shape = height_and_width(size)
    masks, _, notes = _load(decode_mask, [paths, images], shape, np.bool_, sha256, resize)
    warn_of_levels(notes, len(paths) - paths.count(None))
    return masks
