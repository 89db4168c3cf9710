"""Decoded arrays on disk, found again by what they were made of."""

import logging
import math
import os
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from rd_jax.system import hosts
from rd_jax.system.errors import UserError
from rd_jax.system.files import cache_folder

logger = logging.getLogger(__name__)


def cached_array(
    key: str,
    shape: tuple[int, ...],
    dtype: type,
    chunks: Callable[[slice], Iterator[np.ndarray]],
) -> np.ndarray:
    """All rows, memory-mapped from the cache file of `key`, which has to change with them.

    `chunks` yields the rows of a slice, one array after the other. Where the cache cannot be
    written, an array in memory.
    """
    cached = cache_folder() / "images" / f"{key}.npy"
    found = _read_cached(cached, shape, dtype)
    if hosts.all_agree(found is not None) and found is not None:
        return found
    try:
        _write_cached(cached, shape, dtype, chunks)
    except OSError as error:
        if jax.process_count() > 1:
            raise UserError(f"no image cache in {cached.parent} ({error})") from error
        logger.warning("no image cache in %s (%s): decoding into memory", cached.parent, error)
        return np.concatenate(list(chunks(slice(0, shape[0]))))
    return np.load(cached, mmap_mode="r")


def _read_cached(cached: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray | None:
    if not os.path.exists(cached):  # Path.exists would raise where the folder cannot be read
        return None
    try:
        array = np.load(cached, mmap_mode="r")
        if (array.shape, array.dtype) != (shape, np.dtype(dtype)):
            raise ValueError(f"holds {array.dtype} {array.shape}")
        if _checksum_file(cached).read_text() != _checksum(cached):
            raise ValueError("differs from its checksum")
        return array
    except (OSError, ValueError, EOFError) as error:
        logger.warning("damaged cache file %s (%s): decoding again", cached, error)
        return None


def _checksum_file(cached: Path) -> Path:
    return cached.with_suffix(".crc32")


def _checksum(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while block := file.read(2**24):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def _write_cached(
    cached: Path,
    shape: tuple[int, ...],
    dtype: type,
    chunks: Callable[[slice], Iterator[np.ndarray]],
) -> None:
    """The whole file or nothing. Processes that share the folder write a part of it each."""
    hosts.together(lambda: cached.parent.mkdir(parents=True, exist_ok=True))
    is_shared = hosts.all_see(cached.parent)
    name = uuid.uuid4().int % 2**31
    unfinished = cached.with_suffix(f".{hosts.as_the_first(name) if is_shared else name}.partial")
    part = hosts.share(shape[0]) if is_shared else slice(0, shape[0])
    owns_file = hosts.is_first() or not is_shared

    def create() -> None:
        with unfinished.open("wb") as file:
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + math.prod(shape) * np.dtype(dtype).itemsize)

    def write() -> None:
        with unfinished.open("r+b") as file:
            row_bytes = math.prod(shape[1:]) * np.dtype(dtype).itemsize
            file.seek(-(shape[0] - part.start) * row_bytes, os.SEEK_END)
            for chunk in chunks(part):
                file.write(chunk.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def finish() -> None:
        _checksum_file(cached).write_text(_checksum(unfinished))
        os.replace(unfinished, cached)

    try:
        hosts.together(lambda: create() if owns_file else None)
        hosts.together(write)
        hosts.together(lambda: finish() if owns_file else None)
    finally:
        if owns_file:
            unfinished.unlink(missing_ok=True)
