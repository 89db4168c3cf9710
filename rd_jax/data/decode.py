"""Decode one image file to uint8 pixels: upright, in 8 bits, resized."""

import hashlib
import io
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from PIL import Image

from rd_jax.data.headers import open_image, orientation
from rd_jax.system.errors import first_few, printable

logger = logging.getLogger(__name__)

DECODER_VERSION = 6  # part of every cache key: raise it when decoding changes
Region = tuple[int, int, int, int]  # top, left, height, width

_LOSSY = ("JPEG", "JPEG2000", "WEBP", "AVIF")  # these make levels that nobody wrote
_RUN_LENGTHS = 3  # zlib's strategy Z_RLE
_BRIGHTEST_OF_14_BITS = 64  # in 8 bits
_STRIPE = 2**22  # pixels that are hashed at a time
TO_8_BITS = ((np.arange(2**16) + 128) // 257).astype(np.uint8)
_TRANSPOSED = dict(enumerate(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), start=2))

# Large images are decoded one at a time, so that no number of threads runs out of memory.
_LARGE = 2**25
_ONE_LARGE = threading.Lock()


# An image's remark is in its `info["remark"]`. Each remark is logged once, with all its files.
NO_REMARK, DAMAGED, DARK, UNCLEAR = range(4)
_REMARKS = (
    "",
    "images are damaged JPEG files, parts of which are not as they were recorded. Look at them, "
    "and replace or remove them",
    "images have 16 bits and no value above a quarter of white. They are taken to be that dark: "
    "if a camera recorded them with 10 to 14 bits, scale these to 16",
    "masks have levels between normal and anomalous. Pixels above half white are anomalous; in a "
    "mask without any, all but 0 are. If that is wrong, write anomalous pixels as 255, the others "
    "as 0",
)


def warn_of(remarks: Mapping[Path, int], num_files: int) -> None:
    """Log the remarks on some of `num_files` files."""
    for remark in sorted(set(remarks.values()) - {NO_REMARK}):
        paths = sorted(path for path in remarks if remarks[path] == remark)
        shown = printable(first_few(paths))
        logger.warning("%d of %d %s: %s", len(paths), num_files, _REMARKS[remark], shown)


def placed(image: Image.Image, size: tuple[int, int], resize: str) -> tuple[np.ndarray, Region]:
    """Return a grey or RGB image as [H, W, 3] uint8, and the region that it fills there.

    With "stretch" it fills all. With "fit" it keeps its aspect ratio, lies in the middle and is
    mirrored into the rest. Pillow resizes it bilinearly.
    """
    height, width = size
    if resize == "fit":
        scale = min(size[0] / image.height, size[1] / image.width)
        height, width = (max(1, round(scale * side)) for side in (image.height, image.width))
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR).convert("RGB"))
    free = [(top, size[0] - top - height), (left, size[1] - left - width), (0, 0)]
    return np.pad(pixels, free, "symmetric"), (top, left, height, width)


def resized(image: Image.Image, size: tuple[int, int], resize: str = "stretch") -> np.ndarray:
    """Return an image of any mode as [H, W, 3] uint8 RGB: see `placed`."""
    return placed(image.convert("RGB"), size, resize)[0]


@contextmanager
def upright(path: Path) -> Iterator[Image.Image]:
    """Yield the picture in a file, upright. Only one large picture at a time is open.

    Its `info` says if the file `is_deep` (more than 8 bits), if it `is_lossy`, and if it
    `is_damaged`.
    """
    # Open a stream: by its name Pillow maps the file into memory, and garbles a turned TIFF.
    with (
        path.open("rb") as stream,
        open_image(stream) as file,
        _ONE_LARGE if file.width * file.height > _LARGE else nullcontext(),
    ):
        is_16_bits = file.format in ("PNG", "TIFF") and ";16" in str(file.tile[:1])
        is_deep = file.mode[0] == "I" or is_16_bits
        is_lossy = file.format in _LOSSY or "jpeg" in str(file.info.get("compression"))
        # Pillow makes all other kinds of negatives positive.
        is_negative = file.mode == "I;16" and getattr(file, "tag_v2", {}).get(262) == 0
        transposed = _TRANSPOSED.get(orientation(file)) if file.format != "TIFF" else None
        file.load()  # this turns a TIFF
        image: Image.Image = file if transposed is None else file.transpose(transposed)
        if is_negative:
            image = Image.fromarray(65535 - np.asarray(image, np.uint16))
        is_damaged = getattr(file, "is_damaged", False)
        image.info |= {"is_deep": is_deep, "is_lossy": is_lossy, "is_damaged": is_damaged}
        yield image


@contextmanager
def reading(path: Path) -> Iterator[Image.Image]:
    """Yield the picture in a file upright, in 8 bits, in mode L or RGB; alpha is dropped.

    While a large picture is in use, other threads wait with their large ones. Its `info["remark"]`
    says if the file is damaged, or a dark picture of 16 bits.
    """
    with upright(path) as stored:
        image = in_8_bits(stored)
        is_dark = stored.info["is_deep"] and np.max(image.getextrema()) <= _BRIGHTEST_OF_14_BITS
        remark = DAMAGED if stored.info["is_damaged"] else NO_REMARK
        image.info["remark"] = DARK if is_dark else remark
        yield image


def in_8_bits(image: Image.Image) -> Image.Image:
    """Return an image in mode L or RGB. Alpha is dropped; with 16 bits, 65535 is white."""
    image.info.pop("transparency", None)
    if image.mode[0] == "I":
        return Image.fromarray(TO_8_BITS[np.asarray(image)])
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode in ("1", "LA") else "RGB")


def read_image(path: Path) -> Image.Image:
    """Return the image in a file, upright and in RGB: see `reading`."""
    with reading(path) as image:
        return image.convert("RGB")


def decode_image(
    path: Path, size: tuple[int, int], resize: str = "stretch"
) -> tuple[np.ndarray, str, int]:
    """Return the image as [H, W, 3] uint8 RGB (see `placed`), its `pixel_hash` and its remark."""
    with reading(path) as image:
        return placed(image, size, resize)[0], pixel_hash(image), image.info["remark"]


def pixel_hash(image: Image.Image) -> str:
    """Return the SHA-256 of an image's size and its pixels in RGB."""
    sha256 = hashlib.sha256(f"{image.height}x{image.width}:".encode())
    rows = max(1, _STRIPE // image.width)  # a whole large image would fill the memory
    for top in range(0, image.height, rows):
        stripe = image.crop((0, top, image.width, min(top + rows, image.height)))
        sha256.update(stripe.convert("RGB").tobytes())
    return sha256.hexdigest()


def png(pixels: np.ndarray) -> bytes:
    """Return the PNG file of an image uint8 [h, w] or [h, w, 3], or uint16 [h, w]."""
    file = io.BytesIO()
    # Five times as fast as the default for a tenth more bytes. Encoding takes longest of all.
    Image.fromarray(pixels).save(file, "PNG", compress_level=1, compress_type=_RUN_LENGTHS)
    return file.getvalue()


def jpeg(pixels: np.ndarray) -> bytes:
    """Return the JPEG file of an image uint8 [h, w, 3]: a sixth of a PNG, ten times faster."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92, subsampling=0)  # thin lines stay sharp
    return file.getvalue()
