"""What decides the pixels of PNG and JPEG files, apart from what surrounds them."""

import io
import re
import zlib

from PIL.JpegImagePlugin import JpegImageFile

_PNG_START = b"\x89PNG\r\n\x1a\n"
_TELL_ORIENTATION = (
    *(b"eXIf", b"iTXtXML:com.adobe.xmp\0"),
    *(b"tEXtRaw profile type exif\0", b"zTXtRaw profile type exif\0"),
)
_MOST_OF_ORIENTATION = 2**16  # bytes

_END = b"\xff\xd9"
_SCAN = re.compile(rb"\xff\xda..([\x01-\x04])", re.DOTALL)
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_ARITHMETIC = re.compile(rb"\xff[\xc9-\xcb\xcd-\xcf]")
_AHEAD = 8 * b"\xff\x00"  # more bits than libjpeg looks ahead
_LAST_BYTES = 64  # of a scan, without which it cannot be decoded to its end


def png_pixels(data: bytes) -> tuple[bytes, int]:
    """Return a PNG file of pixels and orientation alone, and the number of pictures in `data`.

    Texts, profiles and their checksums decide nothing. Pixels come last, so that the orientation
    is known before they are decoded.
    """
    head, pixels, start, num_pictures = [_PNG_START], list[bytes](), len(_PNG_START), 1
    while start < len(data):
        length, kind = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8]
        chunk = data[start : start + 12 + length]
        start += 12 + length
        if kind == b"acTL":
            num_pictures = max(1, int.from_bytes(chunk[8:12]))
        elif kind == b"tRNS" or (
            chunk.startswith(_TELL_ORIENTATION, 4) and length <= _MOST_OF_ORIENTATION
        ):
            head.append(chunk[:-4] + zlib.crc32(chunk[4:-4]).to_bytes(4))
        elif kind[:1].isupper():
            (pixels if kind in (b"IDAT", b"IEND") else head).append(chunk)
        if kind == b"IEND":
            break
    return b"".join([*head, *pixels]), num_pictures


class JpegPixels(JpegImageFile):
    """A JPEG file that knows, once it is loaded, if it `is_damaged`.

    Of several scans, it is if bits of a frequency are missing. Of one, libjpeg gets the last bytes
    late, and bits to look ahead instead of the end: if it stops before these or asks for more than
    these, the pixels do not fit the file.
    """

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data))
        self.is_damaged, self._border = False, 0
        start, end = self._position(), data.find(_END, self._position())
        if end < 0 or _ARITHMETIC.search(data, 0, start):  # libjpeg raises an error, or may
            return
        scans = list(_SCAN.finditer(data, data.rfind(b"\xff\xda", 0, start), end))
        missing_bits: dict[tuple[int, int], int] = {}
        for scan in scans:
            after = scan.end() + 2 * scan[1][0]
            first, last, bits = data[after : after + 3]
            for component in data[scan.end() : after : 2]:
                missing_bits |= {(component, f): bits & 15 for f in range(first, last + 1)}
        restarts = [data[at.start() + 1] & 7 for at in _RESTART.finditer(data, start, end)]
        self.is_damaged = len(missing_bits) < 64 * self.layers or any(missing_bits.values())
        if len(scans) == 1 and "progressive" not in self.info:
            marker = _MARKER.search(data, start)
            self.is_damaged |= marker is None or marker.start() != end
            self.is_damaged |= restarts != [i % 8 for i in range(len(restarts))]
            self._border = max(start, len(data[:end].rstrip(b"\x00\xff")) - _LAST_BYTES)
            self.fp = io.BytesIO(data[:end] + _AHEAD)

    def _position(self) -> int:
        return self.fp.tell() if self.fp else 0

    def load_read(self, read_bytes: int) -> bytes:
        """Return the next bytes for libjpeg, none across the border."""
        left = self._border - self._position()
        data = super().load_read(min(read_bytes, left) if left > 0 else read_bytes)
        if data or not self._border:
            return data
        self.is_damaged, self._border = True, 0
        return _END

    def load_end(self) -> None:
        """Note that libjpeg needed less than there is."""
        self.is_damaged |= 0 < self._position() <= self._border
