"""Image files to uint8 arrays: decoded and resized once, in parallel, cached on disk."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from rd_jax.data.cache import cached_array
from rd_jax.system import hosts
from rd_jax.system.errors import UserError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
DECODER_VERSION = 2  # part of every cache key: raise it when decoding changes
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")  # whatever the suffix says
_MOST_PIXELS = 2**28  # 16384 x 16384; files that claim more are refused before they are decoded

# Pillow's own limit warns of 100-megapixel photographs; this one is that of `_upright`.
Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, _MOST_PIXELS)


def resized(image: Image.Image, size: int) -> np.ndarray:
    """[size, size, 3] uint8 RGB, PIL bilinear, aspect ratio ignored; grey is repeated."""
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def _upright(path: Path) -> Image.Image:
    """The one picture in a file, upright, 8 bits. Raises ValueError if it has no such reading."""
    # From a stream: what Pillow maps into memory by its name, a TIFF that is turned, it garbles.
    with path.open("rb") as stream, Image.open(stream, formats=_FORMATS) as file:
        if file.width * file.height > _MOST_PIXELS:
            raise ValueError(
                f"{file.width} x {file.height} pixels are more than {_MOST_PIXELS}: scale it down"
            )
        # The first picture of a JPEG is the photograph; others are previews or depth.
        num_pictures = 1 if file.format == "MPO" else getattr(file, "n_frames", 1)
        if num_pictures > 1:
            raise ValueError(f"{num_pictures} pictures in one file: save the one that is meant")
        bits = np.max(getattr(file, "tag_v2", {}).get(ExifTags.Base.BitsPerSample, 8))
        if 8 < bits < 16:
            raise ValueError(
                f"pixels of {bits} bits would be read as too dark; convert it to 8 or 16 bits"
            )
        image = ImageOps.exif_transpose(file)
    # What Pillow would clip or warn about is brought to 8 bits.
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image, np.uint16) / 257 + 0.5).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no defined white; convert it to 8 or 16 bits")
    is_transparent_palette = image.mode == "P" and "transparency" in image.info
    return image.convert("RGBA") if is_transparent_palette else image


def read_image(path: Path) -> Image.Image:
    """The image upright and in RGB; alpha is dropped."""
    return _upright(path).convert("RGB")


def read_mask(path: Path, image: Path) -> Image.Image:
    """The mask of an anomalous image, upright and in grey.

    Raises ValueError if it has another size than the image, if it marks no pixel as anomalous,
    or if some of its pixels are transparent, so that their colour may mean anything.
    """
    mask, masked = _upright(path), _upright(image)
    if mask.size != masked.size:
        raise ValueError(
            f"the mask has {mask.width} x {mask.height} pixels, its image {image} "
            f"{masked.width} x {masked.height}"
        )
    if mask.has_transparency_data and np.asarray(mask.convert("RGBA"))[..., 3].min() < 255:
        raise ValueError("the mask has transparent pixels: save it without an alpha channel")
    mask = mask.convert("L")
    brightest = np.asarray(mask).max()
    if brightest < 128:
        raise ValueError(f"mask values are 0 to {brightest}: write anomalous pixels as 255")
    return mask


def decode_image(path: Path, size: int) -> np.ndarray:
    """[size, size, 3] uint8 RGB, as `resized`."""
    return resized(read_image(path), size)


def decode_mask(path: Path | None, image: Path, size: int) -> np.ndarray:
    """[size, size] bool, resized as the image and thresholded at 0.5; without a mask false."""
    if path is None:
        return np.zeros((size, size), bool)
    mask = read_mask(path, image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(mask) > 127


def _each_file(read: Callable[..., Any], paths: Sequence, *others: Sequence) -> list:
    """`read` of all, in parallel; one error names all files that cannot be read."""

    def attempt(path: Path, *its_others: Any) -> tuple[Any, str | None]:
        try:
            return read(path, *its_others), None
        except Image.UnidentifiedImageError:
            return None, f"{path} (not an image in PNG, JPEG, BMP, TIFF or WebP)"
        except Exception as error:  # decoders raise all kinds of errors for broken files
            return None, f"{path} ({str(error) or type(error).__name__})"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(attempt, paths, *others))
    failures = [failure for _, failure in results if failure]
    if failures:
        shown = "; ".join(failures[:3]) + ("; ..." if len(failures) > 3 else "")
        raise UserError(
            f"{len(failures)} of {len(paths) - paths.count(None)} files cannot be read: {shown}. "
            "Replace or remove them."
        )
    return [value for value, _ in results]


def content_sha256(paths: Sequence[Path | None]) -> str:
    """A hash of what the files hold, in order. Raises UserError if processes read other files."""

    def digest(path: Path | None) -> bytes:
        if path is None:
            return bytes(32)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    with hosts.together():
        digests = _each_file(digest, paths)
    sha256 = hashlib.sha256(b"".join(digests)).hexdigest()
    if not hosts.all_same(sha256):
        where = os.path.commonpath([path for path in paths if path])
        raise UserError(f"the processes read different files in {where}: give all the same data")
    return sha256


def _load(
    decode: Callable[..., np.ndarray],
    files: Sequence[Sequence[Path | None]],
    shape: tuple[int, ...],
    dtype: type,
    sha256: str | None,
) -> np.ndarray:
    """What `decode` makes of one file of each sequence [N] in turn, as one array [N, *shape].

    The cache is keyed by what the files hold, so that an edited file is never served stale.
    """
    num_files = len(files[0])
    if not num_files:
        return np.empty((0, *shape), dtype)

    def decoded(part: range) -> np.ndarray:
        chosen = (paths[part.start : part.stop] for paths in files)
        return np.stack(_each_file(partial(decode, size=shape[0]), *chosen))

    sha256 = sha256 or content_sha256([path for paths in files for path in paths])
    key = f"{sha256}-{decode.__name__}-{shape[0]}-v{DECODER_VERSION}"
    return cached_array(key, (num_files, *shape), dtype, decoded)


def load_images(paths: Sequence[Path], size: int, sha256: str | None = None) -> np.ndarray:
    """[N, size, size, 3] uint8 RGB; `sha256` is their `content_sha256`, if it is known.

    Raises UserError naming the files that cannot be read.
    """
    return _load(decode_image, [paths], (size, size, 3), np.uint8, sha256)


def load_masks(
    paths: Sequence[Path | None], images: Sequence[Path], size: int, sha256: str | None = None
) -> np.ndarray:
    """[N, size, size] bool, true where anomalous; None stands for an image without anomaly.

    `sha256` is the `content_sha256` of masks and images, if it is known. Raises UserError naming
    the masks that cannot be read, or be those of their images: see `read_mask`.
    """
    return _load(decode_mask, [paths, images], (size, size), np.bool_, sha256)
