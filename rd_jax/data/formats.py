"""Which files are images: one rule for training and for predictions."""

import mimetypes
import os
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "JPEG2000", "BMP", "TIFF", "WEBP", "GIF", "AVIF", "PPM")
FORMAT_NAMES = "PNG, JPEG, JPEG 2000, BMP, TIFF, WebP, GIF, AVIF or PNM"
LOSSLESS_SUFFIXES = (".bmp", ".gif", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff")

# What Pillow would open as a TIFF, and give the preview of.
_CAMERA = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw")
# Images for which Pillow has no media type, or which it does not know at all.
_OTHERS = (".dcm", ".dds", ".exr", ".fits", ".heic", ".heif", ".hif", ".jxl", ".jxr", ".qoi")


def open_image(stream: BinaryIO) -> Image.Image:
    """The image in a file, undecoded. Raises UnidentifiedImageError if it is not in FORMATS."""
    if _suffix(Path(stream.name)) in _CAMERA:
        raise UnidentifiedImageError(f"not an image in {FORMAT_NAMES}, but raw data of a camera")
    try:
        return Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(f"not an image in {FORMAT_NAMES}") from error


def looks_like_image(path: Path) -> bool:
    """Whether a file is meant as an image: by its suffix or, if that says nothing, its content."""
    if _suffix(path) in _media_types():
        return is_named_like_image(path)
    return os.path.isfile(path) and _is_recognised(path)


def is_named_like_image(path: Path) -> bool:
    """Whether the suffix says that a file is an image; it is not opened."""
    return _media_types().get(_suffix(path), "").startswith("image/")


def is_in_other_format(path: Path) -> bool:
    """Whether an image is in none of FORMATS; opened if its suffix is that of another one."""
    form = Image.registered_extensions().get(_suffix(path))
    return form not in FORMATS and is_named_like_image(path) and not _is_recognised(path)


def _is_recognised(path: Path) -> bool:
    try:
        with open(path, "rb") as stream, open_image(stream):
            return True
    except UnidentifiedImageError:
        return False
    except Exception:  # broken or locked: whoever decodes it says why
        return True


def _suffix(path: Path) -> str:
    return path.suffix.lower().rstrip()


@cache
def _media_types() -> dict[str, str]:
    """By suffix; from Python and Pillow, not from the machine's own list."""
    of_pillow = {s: Image.MIME.get(form, "") for s, form in Image.registered_extensions().items()}
    return {
        **mimetypes.MimeTypes().types_map[True],
        **{suffix: kind for suffix, kind in of_pillow.items() if kind.startswith("image/")},
        **dict.fromkeys([*_CAMERA, *_OTHERS], "image/*"),
    }
