"""Image files to uint8 arrays: decoded and resized once, in parallel, cached on disk."""

import hashlib
import logging
import math
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageOps

from rd_jax import hosts
from rd_jax.errors import UserError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
# Part of every cache key: raise it when decoding changes.
DECODER_VERSION = 1
_CHUNK = 512  # files decoded at a time


def cache_folder() -> Path:
    """Where everything that can be made again is kept: $XDG_CACHE_HOME/rd_jax."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rd_jax"


def _eight_bit(image: Image.Image) -> Image.Image:
    """Modes that Pillow would clip or warn about, brought to 8 bits."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image, np.uint16) / 257 + 0.5).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no defined white; convert it to 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    return image


def resized(image: Image.Image, size: int) -> np.ndarray:
    """[size, size, 3] uint8 RGB, PIL bilinear, aspect ratio ignored; grey is repeated."""
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def read_image(path: Path) -> Image.Image:
    """The image upright and in RGB; alpha is dropped."""
    with Image.open(path) as file:
        return _eight_bit(ImageOps.exif_transpose(file)).convert("RGB")


def read_mask(path: Path) -> Image.Image:
    """The mask upright and in grey. Raises ValueError if its white is not white."""
    with Image.open(path) as file:
        image = _eight_bit(ImageOps.exif_transpose(file)).convert("L")
    brightest = np.asarray(image).max()
    if 0 < brightest < 128:
        raise ValueError(f"mask values are 0 to {brightest}: write anomalous pixels as 255")
    return image


def decode_image(path: Path, size: int) -> np.ndarray:
    """[size, size, 3] uint8 RGB, as `resized`."""
    return resized(read_image(path), size)


def decode_mask(path: Path, size: int) -> np.ndarray:
    """[size, size] bool, resized as the image and thresholded at 0.5."""
    image = read_mask(path).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image) > 127


def _each_file(read: Callable[[Path], Any], paths: Sequence[Path]) -> list:
    """`read` of all, in parallel; one error names all files that cannot be read."""

    def attempt(path: Path) -> tuple[Any, str | None]:
        try:
            return read(path), None
        except Image.UnidentifiedImageError:
            return None, f"{path} (not an image)"
        except Exception as error:  # decoders raise all kinds of errors for broken files
            return None, f"{path} ({error})"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(attempt, paths))
    failures = [failure for _, failure in results if failure]
    if failures:
        shown = "; ".join(failures[:3]) + ("; ..." if len(failures) > 3 else "")
        raise UserError(
            f"{len(failures)} of {len(paths)} files cannot be read: {shown}. "
            "Replace or remove them."
        )
    return [value for value, _ in results]


def content_sha256(paths: Sequence[Path]) -> str:
    """A hash of what the files hold, in order. Each process reads its share of them."""

    def digest(path: Path) -> bytes:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    own = hosts.together(lambda: _each_file(digest, paths[hosts.share(len(paths))]))
    digests = np.frombuffer(b"".join(own), np.uint8).reshape(-1, 32)
    return hashlib.sha256(hosts.gathered(digests, len(paths)).tobytes()).hexdigest()


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
    if not cached.exists():
        return None
    try:
        array = np.load(cached, mmap_mode="r")
        if (array.shape, array.dtype) != (shape, np.dtype(dtype)):
            raise ValueError(f"holds {array.dtype} {array.shape}")
        return array
    except (OSError, ValueError, EOFError) as error:
        logger.warning("damaged cache file %s (%s): decoding again", cached, error)
        return None


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
    partial = cached.with_suffix(f".{hosts.as_the_first(name) if is_shared else name}.partial")
    part = hosts.share(shape[0]) if is_shared else slice(0, shape[0])
    owns_file = hosts.is_first() or not is_shared

    def create() -> None:
        with partial.open("wb") as file:
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + math.prod(shape) * np.dtype(dtype).itemsize)

    def write() -> None:
        with partial.open("r+b") as file:
            row_bytes = math.prod(shape[1:]) * np.dtype(dtype).itemsize
            file.seek(-(shape[0] - part.start) * row_bytes, os.SEEK_END)
            for chunk in chunks(part):
                file.write(chunk.tobytes())
            file.flush()
            os.fsync(file.fileno())

    try:
        hosts.together(lambda: create() if owns_file else None)
        hosts.together(write)
        hosts.together(lambda: os.replace(partial, cached) if owns_file else None)
    finally:
        if owns_file:
            partial.unlink(missing_ok=True)


def _load(
    paths: Sequence[Path],
    decode: Callable[[Path, int], np.ndarray],
    size: int,
    shape: tuple[int, ...],
    dtype: type,
    sha256: str | None,
) -> np.ndarray:
    """All files as one array [N, *shape].

    The cache is keyed by what the files hold, so that an edited file is never served stale.
    """
    shape = (len(paths), *shape)
    if not paths:
        return np.empty(shape, dtype)

    def decoded(part: slice) -> Iterator[np.ndarray]:
        for start in range(part.start, part.stop, _CHUNK):
            chunk = paths[start : min(start + _CHUNK, part.stop)]
            yield np.stack(_each_file(lambda path: decode(path, size), chunk))

    key = f"{sha256 or content_sha256(paths)}-{decode.__name__}-{size}-v{DECODER_VERSION}"
    return cached_array(key, shape, dtype, decoded)


def load_images(paths: Sequence[Path], size: int, sha256: str | None = None) -> np.ndarray:
    """[N, size, size, 3] uint8 RGB; `sha256` is their `content_sha256`, if it is known.

    Raises UserError naming the files that cannot be read.
    """
    return _load(paths, decode_image, size, (size, size, 3), np.uint8, sha256)


def load_masks(paths: Sequence[Path | None], size: int, sha256: str | None = None) -> np.ndarray:
    """[N, size, size] bool, true where anomalous; None stands for an image without anomaly.

    Otherwise as `load_images`.
    """
    masks = np.zeros((len(paths), size, size), bool)
    present = [path for path in paths if path is not None]
    masks[[path is not None for path in paths]] = _load(
        present, decode_mask, size, (size, size), np.bool_, sha256
    )
    return masks
