"""Decoded rows on disk, found again by the files that they were made of."""

import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from rd_jax.system.errors import UserError
from rd_jax.system.files import cache_folder

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 2**27  # of rows made at a time
_MOST_BYTES = 20 * 10**9  # of all cache files; those not used for longest are removed
_STALE = 3600  # seconds after which nobody goes on writing a file


def cached_rows(
    paths: Sequence[Path | None],
    what: str,
    dtype: np.dtype,
    num_rows: int,
    rows: Callable[[range], np.ndarray],
) -> np.ndarray:
    """Return what `rows` makes of all indices [num_rows], memory-mapped from a cache file.

    That file is found as long as nobody touches the `paths`, and for the same `what`, which says
    what is made of them. Where the cache cannot be written, the array is in memory. Raises
    UserError if files changed while they were read.
    """
    states = list(map(_state, paths))
    key = hashlib.sha256(ascii((what, states)).encode()).hexdigest()
    cached = cache_folder() / "images" / f"{key}.npy"
    with suppress(OSError):  # another process may tidy up, too
        _tidy(cached.parent)
    if (found := _read(cached, dtype, num_rows)) is not None:
        return found

    def checked(part: range) -> np.ndarray:
        made = rows(part)
        for path, state in zip(paths, states, strict=True):
            if _state(path) != state:
                raise UserError(f"{path} changed while it was read: start again")
        return made

    try:
        _write(cached, dtype, num_rows, checked)
        return np.load(cached, mmap_mode="r")
    except OSError as error:
        logger.warning("no image cache in %s (%s): decoding into memory", cached.parent, error)
        return checked(range(num_rows))


def _state(path: Path | None) -> tuple | None:
    """Return what changes whenever a file is written, replaced or restored."""
    try:
        of = os.stat(path) if path else None
    except OSError as error:  # which reading it will tell
        return str(path), error.errno
    return of and (str(path), of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns)


def _tidy(folder: Path) -> None:
    """Remove what nobody finished, and what is beyond the room for the cache."""
    found = ((path.stat(), path) for path in folder.iterdir())
    used = 0
    for of, path in sorted(found, key=lambda found: -found[0].st_mtime):
        used += of.st_size
        is_stale = path.suffix == ".partial" and time.time() - of.st_mtime > _STALE
        if is_stale or used > _MOST_BYTES:
            path.unlink()


def _read(cached: Path, dtype: np.dtype, num_rows: int) -> np.ndarray | None:
    if not os.path.exists(cached):  # Path.exists would raise where the folder cannot be read
        return None
    try:
        array = np.load(cached, mmap_mode="r")
        if (array.shape, array.dtype) != ((num_rows,), dtype):
            raise ValueError(f"holds {array.dtype} {array.shape}")
    except (OSError, ValueError, EOFError) as error:
        logger.warning("damaged cache file %s (%s): decoding again", cached, error)
        return None
    with suppress(OSError):
        os.utime(cached)  # it was used just now
    return array


def _write(
    cached: Path, dtype: np.dtype, num_rows: int, rows: Callable[[range], np.ndarray]
) -> None:
    """Write the whole file or nothing."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    unfinished = cached.with_suffix(f".{secrets.token_hex(4)}.partial")
    try:
        # Written, not mapped: a full disk kills the process that writes into a mapped file.
        with unfinished.open("wb") as file:
            descr = np.lib.format.dtype_to_descr(dtype)
            header = {"descr": descr, "fortran_order": False, "shape": (num_rows,)}
            np.lib.format.write_array_header_2_0(file, header)
            chunk = max(1, _CHUNK_BYTES // dtype.itemsize)
            for start in range(0, num_rows, chunk):
                file.write(rows(range(num_rows)[start : start + chunk]).tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, cached)
    finally:
        unfinished.unlink(missing_ok=True)
