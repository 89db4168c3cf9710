"""Decode image files to arrays, in parallel and only once: a cache on disk keeps them."""

import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

import numpy as np

from rd_jax.data.decode import DECODER_VERSION, decode_image, warn_of
from rd_jax.data.masks import decode_mask
from rd_jax.system.command import num_processors
from rd_jax.system.errors import UserError, first_few
from rd_jax.system.files import cache_folder

logger = logging.getLogger(__name__)
T = TypeVar("T")

_CHUNK_BYTES = 2**27  # of rows made at a time
_MOST_BYTES = 20 * 10**9  # of all cache files; the least recently used are removed
_STALE = 3600  # seconds after which an unfinished file is abandoned


def load_images(
    paths: Sequence[Path], size: tuple[int, int], resize: str = "stretch"
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return [N, H, W, 3] uint8 RGB, and the hash of each image before it was resized.

    Warns of images that may be misread. Raises UserError naming the files that cannot be read.
    """
    return _load(decode_image, [paths], np.dtype((np.uint8, (*size, 3))), resize)


def load_masks(
    masks: Sequence[Sequence[Path]],
    images: Sequence[Path],
    size: tuple[int, int],
    resize: str = "stretch",
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return [N, H, W] bool, true where anomalous, and the hash of each mask before resizing.

    A mask has one file or several; that of a normal image has none. Warns of masks that may be
    misread. Raises UserError naming masks that cannot be read or do not fit their images: see
    `read_mask`.
    """
    first, *others = zip_longest(*masks)
    return _load(decode_mask, [first, images, *others], np.dtype((np.bool_, size)), resize)


def _load(
    decode: Callable[..., tuple[np.ndarray, str, int]],
    files: Sequence[Sequence[Path | None]],
    pixels: np.dtype,
    resize: str,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Decode one file of each sequence [N] at a time; return pixels and hashes."""
    size, paths = pixels.shape[:2], files[0]
    row = np.dtype([("pixels", pixels), ("sha256", "U64"), ("remark", np.uint8)])

    def decoded(part: range) -> np.ndarray:
        chosen = [of[part.start : part.stop] for of in files]
        return np.array(each_file(partial(decode, size=size, resize=resize), *chosen), row)

    what = f"{decode.__name__}-{size}-{resize}-v{DECODER_VERSION}"
    every = [path for of in files for path in of if path]
    rows = cached_rows(every, what, row, len(paths), decoded) if paths else np.zeros(0, row)
    remarks = zip(paths, rows["remark"].tolist(), strict=True)
    warn_of({path: remark for path, remark in remarks if path}, sum(map(bool, paths)))
    return rows["pixels"], tuple(rows["sha256"].tolist())


def each_file(read: Callable[..., T], paths: Sequence[Path | None], *others: Sequence) -> list[T]:
    """Read all files in parallel. Raises one UserError naming files that cannot be read."""
    failures = []

    def attempt(path: Path | None, *its_others: object) -> T | None:
        try:
            return read(path, *its_others)
        except Exception as error:  # decoders raise all kinds of errors for broken files
            failures.append(f"{path} ({str(error) or type(error).__name__})")
            return None

    with ThreadPoolExecutor(num_processors()) as pool:
        results = list(pool.map(attempt, paths, *others))
    if failures:
        raise UserError(
            f"{len(failures)} of {len(paths) - list(paths).count(None)} files cannot be read: "
            f"{first_few(sorted(failures), 3, '; ')}. Replace or remove them."
        )
    return results  # type: ignore[return-value]


def cached_rows(
    paths: Sequence[Path],
    what: str,
    dtype: np.dtype,
    num_rows: int,
    rows: Callable[[range], np.ndarray],
) -> np.ndarray:
    """Return `rows` of all indices [num_rows], memory-mapped from a cache file.

    `what` names the contents. The file is valid for the same `what`, as long as nobody touches the
    `paths`. If the cache cannot be written, the array is in memory. Raises UserError if files
    changed while they were read.
    """
    states = list(map(_state, paths))
    key = hashlib.sha256(ascii((what, states)).encode()).hexdigest()
    cached = cache_folder() / "images" / f"{key}.npy"

    def checked(part: range) -> np.ndarray:
        made = rows(part)
        for path, state in zip(paths, states, strict=True):
            if _state(path) != state:
                raise UserError(f"{path} changed while it was read: start again")
        return made

    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        _tidy(cached.parent)
        with suppress(FileNotFoundError, ValueError, EOFError):  # it is not there, or damaged
            found = np.load(cached, mmap_mode="r")
            os.utime(cached)  # mark it as used
            return found
        _write(cached, dtype, num_rows, checked)
        return np.load(cached, mmap_mode="r")
    except OSError as error:
        logger.warning("no image cache in %s (%s): decoding into memory", cached.parent, error)
        return checked(range(num_rows))


def _state(path: Path) -> tuple:
    """Return facts that change whenever a file is written, replaced or restored."""
    of = os.stat(path)
    return str(path), of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns


def _tidy(folder: Path) -> None:
    """Remove abandoned files, and the least recently used ones beyond `_MOST_BYTES`."""
    used = 0
    with suppress(FileNotFoundError):  # another process tidies up, too
        found = [(path.stat(), path) for path in folder.iterdir()]
        for of, path in sorted(found, key=lambda found: -found[0].st_mtime):
            used += of.st_size
            is_stale = path.suffix == ".partial" and time.time() - of.st_mtime > _STALE
            if is_stale or used > _MOST_BYTES:
                path.unlink()


def _write(
    cached: Path, dtype: np.dtype, num_rows: int, rows: Callable[[range], np.ndarray]
) -> None:
    """Write the whole file or nothing."""
    unfinished = cached.with_suffix(f".{secrets.token_hex(4)}.partial")
    try:
        # Write, do not map: a full disk kills a process that writes into a mapped file.
        with unfinished.open("wb") as file:
            descr = np.lib.format.dtype_to_descr(dtype)
            header = {"descr": descr, "fortran_order": False, "shape": (num_rows,)}
            np.lib.format.write_array_header_2_0(file, header)
            chunk = max(1, _CHUNK_BYTES // dtype.itemsize)
            for start in range(0, num_rows, chunk):
                file.write(rows(range(num_rows)[start : start + chunk]).tobytes())
        os.replace(unfinished, cached)
    finally:
        unfinished.unlink(missing_ok=True)
