"""Opening an image file: what its header says, and whether its pixels have one reading."""

import io
import struct
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from rd_jax.data.containers import JpegPixels, png_pixels

FORMATS = ("PNG", "JPEG", "JPEG2000", "BMP", "TIFF", "WEBP", "GIF", "AVIF", "PPM")
FORMAT_NAMES = "PNG, JPEG, JPEG 2000, BMP, TIFF, WebP, GIF, AVIF or PNM"
# Of which some are TIFF files whose first picture is a preview and does not say so.
CAMERA_SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".kdc"),
    *(".mef", ".mos", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2"),
    *(".srf", ".srw", ".x3f"),
)
MOST_PIXELS = 2**28  # 16384 x 16384; files that claim more are refused before they are decoded

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SUB_IFDS, _DNG_VERSION = 330, 50706
_SENSOR = (32803, 34892)  # photometric: a colour-filter array, linear data of one
_NO_WHITE = "32-bit, signed or fractional pixels have no defined white; convert it to 8 or 16 bits"
_BROKEN = (SyntaxError, IndexError, TypeError, KeyError, struct.error)
_CAMERA = f"not an image in {FORMAT_NAMES}, but raw data of a camera"


def open_image(stream: BinaryIO) -> ImageFile.ImageFile:
    """Return the one picture of a file, undecoded.

    Raises UnidentifiedImageError if it is not in FORMATS, and ValueError if there are several
    pictures, too many pixels, or pixels with no defined white.
    """
    start = stream.read(16)
    stream.seek(0)
    if str(stream.name).lower().rstrip().endswith(CAMERA_SUFFIXES):
        raise UnidentifiedImageError(_CAMERA)
    num_pictures = _pictures_of_tiff(stream) if start.startswith(_TIFF_STARTS) else 0
    try:
        if start.startswith(b"\x89PNG\r\n\x1a\n"):
            data, num_pictures = png_pixels(stream.read())
            file: Any = PngImageFile(io.BytesIO(data))
        elif start.startswith(b"\xff\xd8\xff"):
            file, num_pictures = JpegPixels(stream.read()), 1
        else:
            file = _opened_by_pillow(stream, start)
    except _BROKEN as error:
        raise ValueError(f"its header cannot be read: {error}") from error
    num_pictures = num_pictures or getattr(file, "n_frames", 1)
    if num_pictures > 1:
        raise ValueError(f"{num_pictures} pictures in one file: save the one that is meant")
    if file.width * file.height > MOST_PIXELS:
        raise ValueError(
            f"{file.width} x {file.height} pixels are more than {MOST_PIXELS}: scale it down"
        )
    # Pillow scales the deep levels of PNM files to 16 bits.
    if file.mode == "F" or (file.mode == "I" and file.format != "PPM"):
        raise ValueError(_NO_WHITE)
    return file


def _opened_by_pillow(stream: BinaryIO, start: bytes) -> ImageFile.ImageFile:
    """Open a file by Pillow's table of formats.

    Image.open would apply its limit of pixels, which belongs to the whole program.
    """
    Image.init()
    for form in FORMATS:
        factory, accept = Image.OPEN.get(form, (None, None))
        if not (factory and accept and accept(start)):
            continue
        try:
            stream.seek(0)
            file = factory(stream, "")
        except _BROKEN:
            if form == "TIFF":
                raise
            continue  # a text may begin like that
        if form == "TIFF" and file.width * file.height <= MOST_PIXELS:
            # Its plugin would apply the limit when it makes room for the pixels.
            file.im = Image.new(file.mode, file.size[::-1] if _is_lying(file) else file.size).im
        return file
    raise UnidentifiedImageError(f"not an image in {FORMAT_NAMES}")


def _is_lying(file: Any) -> bool:
    return file.tag_v2.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)


def upright_size(file: ImageFile.ImageFile) -> tuple[int, int]:
    """Return width and height of an undecoded picture once it is turned upright."""
    is_known = file.format == "TIFF" and _is_lying(file)  # Pillow exchanged them
    is_lying = orientation(file) in (5, 6, 7, 8)
    return file.size[::-1] if is_lying and not is_known else file.size


def orientation(file: Image.Image) -> int:
    """Return the orientation by EXIF or else XMP data; 1, as stored, if they cannot be read."""
    try:  # not by the method of PNG files, which decodes them
        return Image.Image.getexif(file).get(ExifTags.Base.Orientation, 1)
    except Exception:  # all kinds of them
        return 1


def _pictures_of_tiff(stream: BinaryIO) -> int:
    """Return how many pictures a TIFF file holds.

    What follows the first one and is not a picture does not count. Raises UnidentifiedImageError
    for raw data of a camera, and ValueError for pixels that have no defined white.
    """
    head = stream.read(16)
    if head[8:10] == b"CR":  # Canon's, whose first picture is no reduced one
        raise UnidentifiedImageError(_CAMERA)
    tags = ImageFileDirectory_v2(head if head[2] == 43 or head[3] == 43 else head[:8])
    seen = list[int]()
    while tags.next and tags.next not in seen:
        place = tags.next
        try:
            stream.seek(place)
            tags.load(stream)
            if ExifTags.Base.ImageWidth not in tags:
                break
        except Exception:  # all kinds of them, of what is no directory
            break
        if not seen:
            _check_first(tags)
        seen.append(place)
    stream.seek(0)
    return len(seen)


def _check_first(tags: ImageFileDirectory_v2) -> None:
    is_preview = tags.get(ExifTags.Base.NewSubfileType, 0) == 1 and _SUB_IFDS in tags
    photometric = tags.get(ExifTags.Base.PhotometricInterpretation)
    if _DNG_VERSION in tags or is_preview or photometric in _SENSOR:
        raise UnidentifiedImageError(_CAMERA)
    bits = int(np.max(tags.get(ExifTags.Base.BitsPerSample, 1)))
    if 8 < bits < 16:
        raise ValueError(
            f"pixels of {bits} bits would be read as too dark; convert it to 8 or 16 bits"
        )
    if bits > 16 or np.max(tags.get(ExifTags.Base.SampleFormat, 1)) > 1:
        raise ValueError(_NO_WHITE)
