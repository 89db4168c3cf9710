"""Decoded arrays on disk, found again by what they were made of."""

import logging
import math
import os
import secrets
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from numpy.typing import DTypeLike

from rd_jax.system import hosts
from rd_jax.system.errors import UserError
from rd_jax.system.files import cache_folder

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 2**27  # of rows made at a time


def cached_array(
    key: str, shape: tuple[int, ...], dtype: DTypeLike, rows: Callable[[range], np.ndarray]
) -> np.ndarray:
    """What `rows` makes of all indices, memory-mapped from the cache file of `key`.

    The key has to change with the rows. Where the cache cannot be written, an array in memory.
    """
    cached = cache_folder() / "images" / f"{key}.npy"
    found = _read_cached(cached, shape, dtype)
    if hosts.all_agree(found is not None) and found is not None:
        return found
    try:
        _write_cached(cached, shape, dtype, rows)
    except OSError as error:
        if jax.process_count() > 1:
            raise UserError(f"no image cache in {cached.parent} ({error})") from error
        logger.warning("no image cache in %s (%s): decoding into memory", cached.parent, error)
        return rows(range(shape[0]))
    return np.load(cached, mmap_mode="r")


def _read_cached(cached: Path, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray | None:
    if not os.path.exists(cached):  # Path.exists would raise where the folder cannot be read
        return None
    try:
        array = np.load(cached, mmap_mode="r")
        if (array.shape, array.dtype) != (shape, np.dtype(dtype)):
            raise ValueError(f"holds {array.dtype} {array.shape}")
        if cached.with_suffix(".crc32").read_text() != _checksum(cached):
            raise ValueError("differs from its checksum")
        return array
    except (OSError, ValueError, EOFError) as error:
        logger.warning("damaged cache file %s (%s): decoding again", cached, error)
        return None


def _checksum(path: Path) -> str:
    return f"{zlib.crc32(np.memmap(path, np.uint8, 'r').data):08x}"


def _write_cached(
    cached: Path, shape: tuple[int, ...], dtype: DTypeLike, rows: Callable[[range], np.ndarray]
) -> None:
    """The whole file or nothing. Processes that share the folder write a part of it each."""
    with hosts.together():
        cached.parent.mkdir(parents=True, exist_ok=True)
    is_shared = hosts.all_see(cached.parent)
    name = hosts.as_the_first(secrets.randbits(31)) + (0 if is_shared else jax.process_index())
    unfinished, checksum = (cached.with_suffix(f".{name}{end}") for end in (".partial", ".sum"))
    own = range(shape[0])[hosts.share(shape[0]) if is_shared else slice(None)]
    owns_file = hosts.is_first() or not is_shared
    try:
        with hosts.together():
            if owns_file:
                np.lib.format.open_memmap(unfinished, "w+", dtype, shape)
        # Written, not mapped: a full disk kills the process that writes into a mapped file.
        with hosts.together(), unfinished.open("r+b") as file:
            row_bytes = math.prod(shape[1:]) * np.dtype(dtype).itemsize
            file.seek((own.start - shape[0]) * row_bytes, os.SEEK_END)
            chunk = max(1, _CHUNK_BYTES // max(row_bytes, 1))
            for start in range(0, len(own), chunk):
                file.write(rows(own[start : start + chunk]).tobytes())
            file.flush()
            os.fsync(file.fileno())
        with hosts.together():
            if owns_file:
                checksum.write_text(_checksum(unfinished))
                os.replace(checksum, cached.with_suffix(".crc32"))
                os.replace(unfinished, cached)
    finally:
        if owns_file:
            for path in (unfinished, checksum):
                path.unlink(missing_ok=True)
