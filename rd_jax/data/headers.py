"""Open an image file: read its header, and check that its pixels have one meaning only.

Data around the pixels, long or broken, change nothing.
"""

import io
import re
import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

FORMATS = ("PNG", "JPEG", "JPEG2000", "BMP", "TIFF", "WEBP", "GIF", "AVIF", "PPM")
FORMAT_NAMES = "PNG, JPEG, JPEG 2000, BMP, TIFF, WebP, GIF, AVIF or PNM"
# Some of these are TIFF files whose first picture is a preview and does not say so.
CAMERA_SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".kdc"),
    *(".mef", ".mos", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2"),
    *(".srf", ".srw", ".x3f"),
)
MOST_PIXELS = 2**28  # 16384 x 16384; files that claim more are refused before they are decoded

_NO_IMAGE = f"not an image in {FORMAT_NAMES}"
_CAMERA = f"{_NO_IMAGE}, but raw data of a camera: convert it"
_NO_WHITE = "32-bit, signed or fractional pixels have no defined white; convert it to 8 or 16 bits"

# Optional chunks of PNG files that change the picture.
_SEEN_CHUNKS = (
    *(b"tRNS", b"acTL", b"fcTL", b"eXIf", b"iTXtXML:com.adobe.xmp\0"),
    *(b"tEXtRaw profile type exif\0", b"zTXtRaw profile type exif\0"),
)
_SUB_IFDS, _DNG_VERSION = 330, 50706
_SENSOR = (32803, 34892)  # photometric: a colour-filter array, linear data of one
_LYING = (5, 6, 7, 8)  # orientations of pictures whose sides are exchanged


def open_image(stream: BinaryIO) -> ImageFile.ImageFile:
    """Open the only picture of a file, without decoding it.

    Raises UnidentifiedImageError if it is not in FORMATS, and ValueError if there are several
    pictures, too many pixels, or pixels with no defined white.
    """
    start = stream.read(16)
    if str(stream.name).lower().rstrip().endswith(CAMERA_SUFFIXES):
        raise UnidentifiedImageError(_CAMERA)
    Image.init()
    # Not by Image.open: its limits of pixels and texts are those of the whole program.
    form = next((f for f in FORMATS if (accept := Image.OPEN[f][1]) and accept(start)), None)
    if form is None:
        raise UnidentifiedImageError(_NO_IMAGE)
    factory: Any = {"PNG": _png, "JPEG": _Jpeg}.get(form, Image.OPEN[form][0])
    try:
        num_in_tiff = _pictures_of_tiff(stream, start) if form == "TIFF" else 0
        stream.seek(0)
        file = factory(stream)
    except (SyntaxError, IndexError, TypeError, KeyError, struct.error) as error:
        if form in ("PNG", "JPEG", "TIFF"):
            raise ValueError(f"its header cannot be read: {error}") from error
        raise UnidentifiedImageError(_NO_IMAGE) from error  # a text may begin like an image
    if (num_pictures := num_in_tiff or getattr(file, "n_frames", 1)) > 1:
        raise ValueError(f"{num_pictures} pictures in one file: save the one that is meant")
    if file.width * file.height > MOST_PIXELS:
        raise ValueError(
            f"{file.width} x {file.height} pixels are more than {MOST_PIXELS}: scale it down"
        )
    # Pillow scales the deep levels of PNM files to 16 bits.
    if file.mode == "F" or (file.mode == "I" and form != "PPM"):
        raise ValueError(_NO_WHITE)
    if form == "TIFF":  # its plugin would apply the limit when it allocates pixels
        file.im = Image.new(file.mode, _stored_size(file)).im
    return file


def orientation(file: Image.Image) -> int:
    """Return the orientation from EXIF or XMP data, or 1 (as stored) if they cannot be read."""
    try:  # a PNG file's own method would decode it
        return Image.Image.getexif(file).get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken data raise all kinds of errors
        return 1


def upright_size(file: ImageFile.ImageFile) -> tuple[int, int]:
    """Return width and height of an undecoded picture once it is turned upright."""
    width, height = _stored_size(file)
    return (height, width) if orientation(file) in _LYING else (width, height)


def _stored_size(file: Any) -> tuple[int, int]:
    """Return width and height as stored. Pillow may have exchanged those of a TIFF."""
    if file.format != "TIFF":
        return file.size
    return file.tag_v2[ExifTags.Base.ImageWidth], file.tag_v2[ExifTags.Base.ImageLength]


def _png(stream: BinaryIO) -> PngImageFile:
    """Open a PNG file without texts, profiles and their checksums, which change no pixel.

    Pixels come last, so that the orientation is known before they are decoded.
    """
    data = stream.read()
    chunks, start, kind = list[bytes](), 8, b""
    while start < len(data) and kind != b"IEND":
        # Slice one chunk only: slices up to the end would copy the file for each of many chunks.
        end = start + 12 + int.from_bytes(data[start : start + 4])
        chunk, start = data[start:end], end
        kind = chunk[4:8]
        if kind[:1].isupper():
            chunks.append(chunk)
        elif chunk.startswith(_SEEN_CHUNKS, 4):
            chunks.append(chunk[:-4] + zlib.crc32(chunk[4:-4]).to_bytes(4))
    chunks.sort(key=lambda chunk: chunk[4:8] in (b"IDAT", b"IEND"))
    return PngImageFile(io.BytesIO(b"".join([data[:8], *chunks])))


class _Jpeg(JpegImageFile):
    """A JPEG file that knows, once it is loaded, if it `is_damaged`, as far as libjpeg shows.

    libjpeg gets the last bytes of the scan late, and then no end. If it stops before these bytes or
    asks for more, the pixels do not fit the file. This does not work for several scans.
    """

    def __init__(self, stream: BinaryIO):
        data = stream.read()
        self._stream = io.BytesIO(data)
        super().__init__(self._stream)
        self.is_damaged, self._late = False, 0  # where the last bytes begin
        start = self._stream.tell()
        end = data.find(b"\xff\xd9", start)
        if end > 0 and "progressive" not in self.info and b"\xff\xda" not in data[start:end]:
            restarts = re.findall(rb"\xff[\xd0-\xd7]", data[start:end])
            self.is_damaged = any(mark[1] & 7 != i % 8 for i, mark in enumerate(restarts))
            self._late = max(start, len(data[:end].rstrip(b"\0\xff")) - 64)
            # Add as many bytes as libjpeg looks ahead.
            self.fp = self._stream = io.BytesIO(data[:end] + 8 * b"\xff\0")

    def load_read(self, read_bytes: int) -> bytes:
        """Return the next bytes for libjpeg."""
        early = self._late - self._stream.tell()
        data = super().load_read(min(read_bytes, early) if early > 0 else read_bytes)
        if data or not self._late:
            return data
        self.is_damaged, self._late = True, 0
        return b"\xff\xd9"

    def load_end(self) -> None:
        """Note damage if libjpeg left bytes unread."""
        self.is_damaged |= 0 < self._stream.tell() <= self._late


def _pictures_of_tiff(stream: BinaryIO, start: bytes) -> int:
    """Return how many pictures a TIFF file holds. Other data behind them do not count.

    Raises UnidentifiedImageError for raw data of a camera, and ValueError for pixels that have no
    defined white.
    """
    if start[8:10] == b"CR":  # Canon's: its first picture is not marked as reduced
        raise UnidentifiedImageError(_CAMERA)
    tags = ImageFileDirectory_v2(start if 43 in start[2:4] else start[:8])
    seen = list[int]()
    while tags.next and tags.next not in seen:
        place = tags.next
        try:
            stream.seek(place)
            tags.load(stream)
        except Exception:  # other data raise all kinds of errors
            break
        if ExifTags.Base.ImageWidth not in tags:
            break
        if not seen:
            _check_first(tags)
        seen.append(place)
    return len(seen)


def _check_first(tags: ImageFileDirectory_v2) -> None:
    is_preview = tags.get(ExifTags.Base.NewSubfileType, 0) == 1 and _SUB_IFDS in tags
    is_sensor = tags.get(ExifTags.Base.PhotometricInterpretation) in _SENSOR
    if _DNG_VERSION in tags or is_preview or is_sensor:
        raise UnidentifiedImageError(_CAMERA)
    bits = int(np.max(tags.get(ExifTags.Base.BitsPerSample, 1)))
    if 8 < bits < 16:
        raise ValueError(
            f"pixels of {bits} bits would be read as too dark; convert it to 8 or 16 bits"
        )
    if bits > 16 or np.max(tags.get(ExifTags.Base.SampleFormat, 1)) > 1:
        raise ValueError(_NO_WHITE)
