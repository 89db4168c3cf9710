"""One image file to uint8 pixels: upright, in 8 bits, resized."""

import hashlib
import io
import logging
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from rd_jax.data.headers import open_image, orientation
from rd_jax.system.errors import printable

logger = logging.getLogger(__name__)

DECODER_VERSION = 5  # part of every cache key: raise it when decoding changes
Region = tuple[int, int, int, int]  # top, left, height, width

_LOSSY = ("JPEG", "JPEG2000", "WEBP", "AVIF")  # which make levels that were not written
_RUN_LENGTHS = 3  # zlib's strategy Z_RLE
_BRIGHTEST_OF_14_BITS = 64  # in 8 bits
_STRIPE = 2**22  # pixels that are converted at a time
TO_8_BITS = ((np.arange(2**16) + 128) // 257).astype(np.uint8)
_TRANSPOSED = dict(enumerate(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), start=2))


@dataclass
class Notes:
    """What of several files is to be said once for all."""

    levels: dict[Path, tuple[int, int]] = field(default_factory=dict)  # that look misread
    damaged: set[Path] = field(default_factory=set)


# Large images are decoded one at a time, so that no number of threads runs out of memory.
_LARGE = 2**25
_ONE_LARGE = threading.Lock()


def region_of(picture: tuple[int, int], size: tuple[int, int], resize: str) -> Region:
    """Return where a picture (height, width) comes to lie in an image of `size`.

    Everywhere by "stretch"; by "fit" in the middle, with its aspect ratio.
    """
    if resize == "stretch":
        return 0, 0, *size
    scale = min(there / own for own, there in zip(picture, size, strict=True))
    height, width = (
        max(1, min(round(scale * own), there)) for own, there in zip(picture, size, strict=True)
    )
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width


def placed(image: Image.Image, size: tuple[int, int], resize: str) -> tuple[np.ndarray, Region]:
    """Return [H, W, 3] uint8 with an image, grey or RGB, where `region_of` says, and that place.

    It is resized bilinearly by Pillow; what is left free is filled with its mirror image.
    """
    region = region_of((image.height, image.width), size, resize)
    top, left, height, width = region
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR).convert("RGB"))
    if region == (0, 0, *size):
        return pixels, region
    free = [(top, size[0] - top - height), (left, size[1] - left - width), (0, 0)]
    return np.pad(pixels, free, "symmetric"), region


def resized(image: Image.Image, size: tuple[int, int], resize: str = "stretch") -> np.ndarray:
    """Return [H, W, 3] uint8 RGB of an image of any mode, as `placed`."""
    return placed(image.convert("RGB"), size, resize)[0]


def cropped(image: np.ndarray, region: Region) -> np.ndarray:
    """Return what of an image or map [H, W, ...] lies within the region."""
    top, left, height, width = region
    return image[top : top + height, left : left + width]


@contextmanager
def upright(path: Path) -> Iterator[Image.Image]:
    """Yield the picture in a file, upright; of large ones, one at a time over all threads."""
    # From a stream: what Pillow maps into memory by its name, a TIFF that is turned, it garbles.
    with (
        path.open("rb") as stream,
        open_image(stream) as file,
        _ONE_LARGE if file.width * file.height > _LARGE else nullcontext(),
    ):
        is_deep = file.mode[0] == "I" or (
            file.format in ("PNG", "TIFF") and ";16" in str(file.tile[:1])
        )
        is_lossy = file.format in _LOSSY or "jpeg" in str(file.info.get("compression"))
        # The one kind of negative that Pillow does not make positive.
        is_negative = file.mode == "I;16" and getattr(file, "tag_v2", {}).get(262) == 0
        transposed = _TRANSPOSED.get(orientation(file)) if file.format != "TIFF" else None
        file.load()  # which turns a TIFF
        image: Image.Image = file if transposed is None else file.transpose(transposed)
        image.info |= {"is_deep": is_deep, "is_lossy": is_lossy, "is_negative": is_negative}
        image.info["is_damaged"] = getattr(file, "is_damaged", False)
        yield image


@contextmanager
def reading(path: Path, notes: Notes | None = None) -> Iterator[Image.Image]:
    """Yield the picture in a file upright, in 8 bits, in mode L or RGB; alpha is dropped.

    While a large one is in use, other threads wait with theirs. Notes damaged files, and darkest
    and brightest level of a picture of 16 bits that is dark.
    """
    with upright(path) as stored:
        image = stored
        image.info.pop("transparency", None)
        if image.mode[0] == "I":
            image = looked_up(image, TO_8_BITS)
        elif image.mode not in ("L", "RGB"):
            image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
        if notes is not None and stored.info["is_damaged"]:
            notes.damaged.add(path)
        if notes is not None and stored.info["is_deep"]:
            extremes = np.array(image.getextrema())
            if extremes.max() <= _BRIGHTEST_OF_14_BITS:
                notes.levels[path] = int(extremes.min()), int(extremes.max())
        yield image


def read_image(path: Path, notes: Notes | None = None) -> Image.Image:
    """Return the image in a file upright and in RGB, as `reading`."""
    with reading(path, notes) as image:
        return image.convert("RGB")


def decode_image(
    path: Path, size: tuple[int, int], resize: str = "stretch", notes: Notes | None = None
) -> tuple[np.ndarray, bytes]:
    """Return [H, W, 3] uint8 RGB, as `placed`, and the `pixel_hash`."""
    with reading(path, notes) as image:
        return placed(image, size, resize)[0], pixel_hash(image)


def pixel_hash(image: Image.Image) -> bytes:
    """Return the SHA-256 of an image's size and its pixels in RGB."""
    sha256 = hashlib.sha256(f"{image.height}x{image.width}:".encode())
    for _, stripe in stripes_of(image):
        sha256.update(stripe.convert("RGB").tobytes())
    return sha256.digest()


def stripes_of(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield the first row of each stripe of an image, and the stripe."""
    rows = max(1, _STRIPE // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def grey_levels(image: Image.Image) -> np.ndarray:
    """Return [h, w] of grey levels of 8 or 16 bits, or of those of the brightest colour."""
    if image.mode[0] == "I":
        levels = np.asarray(image).astype(np.uint16)
        return 65535 - levels if image.info.get("is_negative") else levels
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    return np.asarray(image.convert("RGB")).max(-1)


def looked_up(image: Image.Image, values: np.ndarray) -> Image.Image:
    """Return a grey image of the uint8 values that a table has for the levels of an image."""
    grey = Image.new("L", image.size)
    for top, stripe in stripes_of(image):
        grey.paste(Image.fromarray(values[grey_levels(stripe)]), (0, top))
    return grey


def warn_of_images(notes: Notes, num_images: int) -> None:
    """Log which images are damaged, and which of 16 bits may have been recorded with less."""
    if notes.damaged:
        logger.warning(
            "%d of %d images are damaged JPEG files, parts of which are not as they were recorded: "
            "%s. Look at them, and replace or remove them",
            *(len(notes.damaged), num_images, named_files(notes.damaged)),
        )
    if notes.levels:
        logger.warning(
            "%d of %d images have 16 bits and no value above a quarter of white, e.g. %s: %d to %d "
            "in 8 bits. They are taken to be that dark: if a camera recorded them with 10 to 14 "
            "bits, scale these to 16",
            *(len(notes.levels), num_images, named_files(notes.levels, 1)),
            *notes.levels[min(notes.levels)],
        )


def named_files(paths: Collection[Path], most: int = 10) -> str:
    """Return the first of several paths, in one line."""
    names = ", ".join(printable(str(path)) for path in sorted(paths)[:most])
    return f"{names}, ..." if len(paths) > most > 1 else names


def png(pixels: np.ndarray) -> bytes:
    """Return the file of an image [h, w] or [h, w, 3], uint8, or [h, w] uint16."""
    file = io.BytesIO()
    # Five times as fast as the default for a tenth more bytes; it is what takes longest.
    Image.fromarray(pixels).save(file, "PNG", compress_level=1, compress_type=_RUN_LENGTHS)
    return file.getvalue()


def jpeg(pixels: np.ndarray) -> bytes:
    """Return the file of an image [h, w, 3], uint8: a sixth of the PNG's size, ten times faster."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92)
    return file.getvalue()
