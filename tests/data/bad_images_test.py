"""Image files that are refused, each in one line, and unusual ones that are read."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from rd_jax.data.cache import load_images, load_masks
from rd_jax.data.decode import decode_image
from tests.data.refused import refused

RAMP = (np.arange(48 * 64) % 256).reshape(48, 64).astype(np.uint8)


def bytes_of(**options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RAMP).save(stream, **options)
    return stream.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, and whose pixels are missing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum + b"\0\0\1\0IDAT"


def tiff(pixels: np.ndarray, *, photometric: int = 1, sample_format: int = 1) -> bytes:
    """An uncompressed grey TIFF, little-endian, of tags that Pillow does not write."""
    height, width = pixels.shape
    tags = {256: width, 257: height, 258: 8 * pixels.itemsize, 259: 1, 262: photometric}
    tags |= {273: 200, 277: 1, 278: height, 279: pixels.nbytes, 339: sample_format}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries)
    return head.ljust(200, b"\0") + pixels.tobytes()


def tiff_of_12_bits() -> bytes:
    tags = {256: 2, 257: 2, 258: 12, 259: 1, 262: 1, 273: 134, 277: 1, 278: 2, 279: 6}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4)
    return head.ljust(134, b"\0") + b"\xff" * 6


def two_pictures(form: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        first, second = (Image.fromarray(x).convert("RGB") for x in (RAMP, 255 - RAMP))
        first.save(path, form, save_all=True, append_images=[second])

    return write


def content(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data)


def image(pixels: np.ndarray, form: str = "PNG") -> Callable[[Path], None]:
    return lambda path: Image.fromarray(pixels).save(path, form)


PNG, JPEG, WEBP = (bytes_of(format=form) for form in ("PNG", "JPEG", "WEBP"))
NO_IMAGE = "(not an image in PNG, JPEG, JPEG 2000, BMP, TIFF, WebP, GIF, AVIF or PNM"
TWO = "(2 pictures in one file: save the one that is meant)"
NO_WHITE = "32-bit, signed or fractional pixels have no defined white; convert it to 8 or 16 bits"
DEPTH = "(32-bit, signed or fractional pixels have no defined white; convert it to 8 or 16 bits)"

IMAGES = {
    "empty file": (content(b""), NO_IMAGE),
    "text": (content(b"an image"), NO_IMAGE),
    "icon by another name": (image(RAMP, "ICO"), NO_IMAGE),
    "PNG of a header alone": (content(PNG[:40]), "("),
    "truncated PNG": (content(PNG[: len(PNG) // 2]), "(image file is truncated"),
    "truncated JPEG": (content(JPEG[: len(JPEG) // 2]), "(image file is truncated"),
    "truncated BMP": (content(bytes_of(format="BMP")[:2000]), "(image file is truncated"),
    "truncated TIFF": (content(bytes_of(format="TIFF")[:2000]), "("),
    "truncated WebP": (content(WEBP[: len(WEBP) // 2]), "("),
    "PNG with a wrong checksum": (content(PNG.replace(PNG[-20:-16], b"\0\1\2\3")), "("),
    "no pixels": (content(png_of_size(0, 5)), "("),
    "decompression bomb": (
        content(png_of_size(50_000, 50_000)),
        "(50000 x 50000 pixels are more than 268435456: scale it down)",
    ),
    "12-bit TIFF": (content(tiff_of_12_bits()), "(pixels of 12 bits would be read as too dark"),
    "signed 8-bit integers": (content(tiff(RAMP, sample_format=2)), DEPTH),
    "signed 16-bit integers": (content(tiff(RAMP.astype(np.int16), sample_format=2)), DEPTH),
    "32-bit integers": (image(RAMP.astype(np.int32), "TIFF"), DEPTH),
    "32-bit floats": (image(RAMP.astype(np.float32), "TIFF"), DEPTH),
    "animated PNG": (two_pictures("PNG"), TWO),
    "animated WebP": (two_pictures("WEBP"), TWO),
    "TIFF of many pages": (two_pictures("TIFF"), TWO),
    "animated GIF": (two_pictures("GIF"), TWO),
}


@pytest.mark.parametrize("row", IMAGES)
def test_an_image_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path, row: str) -> None:
    make, message = IMAGES[row]
    make(tmp_path / "x.png")
    Image.fromarray(RAMP).save(tmp_path / "good.png")
    files = [tmp_path / "good.png", tmp_path / "x.png"]
    refused(f"1 of 2 files cannot be read: {files[1]} {message}", load_images, files, (32, 32))


def test_a_file_that_fails_while_it_is_read_is_named(tmp_path: Path) -> None:
    if not os.path.exists("/proc/self/mem"):
        pytest.skip("there is no file here that fails for every user, /proc/self/mem")
    (tmp_path / "x.png").symlink_to("/proc/self/mem")
    refused(f"{tmp_path / 'x.png'} ([Errno 5] ", load_images, [tmp_path / "x.png"], (32, 32))


def transparent(path: Path) -> None:
    Image.fromarray(np.dstack([RAMP, RAMP, RAMP, 255 - RAMP])).save(path, "PNG")


def turned_grey_tiff(path: Path) -> None:
    tags = {ExifTags.Base.Orientation: 6}
    Image.fromarray(np.rot90(RAMP)).save(path, "TIFF", tiffinfo=tags)


READ = {
    "alpha, which is dropped": (transparent, RAMP),
    "another format than the suffix says": (image(RAMP, "BMP"), RAMP),
    "JPEG with a depth map behind it": (two_pictures("MPO"), RAMP),
    "GIF": (image(RAMP, "GIF"), RAMP),
    "JPEG 2000": (image(RAMP, "JPEG2000"), RAMP),
    "AVIF": (lambda path: Image.fromarray(RAMP).convert("RGB").save(path, "AVIF"), RAMP),
    "PGM": (image(RAMP, "PPM"), RAMP),
    "16 bits, scaled": (image(RAMP.astype(np.uint16) * 257), RAMP),
    "16 bits, of which 0 is white": (
        content(tiff(65535 - RAMP.astype(np.uint16) * 257, photometric=0)),
        RAMP,
    ),
    "16 bits in JPEG 2000": (image(RAMP.astype(np.uint16) * 257, "JPEG2000"), RAMP),
    "16 bits in PGM": (image(RAMP.astype(np.int32) * 257, "PPM"), RAMP),
    "12 bits in PGM": (
        content(b"P5 64 48 4095\n" + (RAMP * np.uint16(16)).astype(">u2").tobytes()),
        RAMP,
    ),
    "PNG whose EXIF data are none, as stored": (
        content(bytes_of(format="PNG", exif=b"Exif\0\0?")),
        RAMP,
    ),
    "a TIFF that is turned": (turned_grey_tiff, RAMP),
    "JPEG whose EXIF data are none, as stored": (
        lambda path: Image.fromarray(RAMP).save(path, "JPEG", exif=b"Exif\0\0nonsense"),
        RAMP,
    ),
}


@pytest.mark.parametrize("row", READ)
def test_an_unusual_image_has_a_defined_reading(tmp_path: Path, row: str) -> None:
    make, expected = READ[row]
    make(tmp_path / "x.png")
    grey = Image.fromarray(expected).convert("RGB")
    resized = np.asarray(grey.resize((32, 32), Image.Resampling.BILINEAR), int)
    assert (
        np.abs(decode_image(tmp_path / "x.png", (32, 32))[0] - resized).max() <= 8
    )  # JPEG is lossy


def test_an_image_of_one_pixel_is_read(tmp_path: Path) -> None:
    Image.new("L", (1, 1), 77).save(tmp_path / "1.png")
    assert (load_images([tmp_path / "1.png"], (32, 32))[0] == 77).all()


MARKED = np.where(RAMP > 250, 255, 0).astype(np.uint8)
MASKS = {
    "of another size": (image(MARKED[:, :-1]), "(the mask has 63 x 48 pixels, its image "),
    "lying": (image(MARKED.T), "(the mask has 48 x 64 pixels, its image "),
    "labels from 1": (image(MARKED // 255 + 1), "(mask values are 1 to 2, so all pixels would be "),
    "a JPEG": (image(MARKED, "JPEG"), "(the mask may have lost pixels: save it as PNG, BMP, GIF, "),
    "a WebP": (image(MARKED, "WEBP"), "(the mask may have lost pixels: save it as PNG, BMP, GIF, "),
    "colours without black": (
        image(np.where(MARKED[..., None], [200, 0, 0], [31, 119, 180]).astype(np.uint8)),
        "(mask values are 180 to 200, so all pixels would be anomalous: write anomalous pixels as ",
    ),
    "transparent": (
        image(np.dstack([MARKED, MARKED])),
        "(the mask has transparent pixels: save it without an alpha channel)",
    ),
    "of several pages": (two_pictures("PNG"), TWO),
    "text": (content(b"a mask"), NO_IMAGE),
}


@pytest.mark.parametrize("row", MASKS)
def test_a_mask_that_is_not_that_of_its_image_is_refused(tmp_path: Path, row: str) -> None:
    make, message = MASKS[row]
    make(tmp_path / "m.png")
    Image.fromarray(RAMP).save(tmp_path / "x.png")
    line = refused(message, load_masks, [[tmp_path / "m.png"]], [tmp_path / "x.png"], (32, 32))
    assert line.startswith(f"1 of 1 files cannot be read: {tmp_path / 'm.png'} (")


def test_a_mask_is_compared_with_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    Image.fromarray(MARKED.T).save(tmp_path / "m.png")
    masks, files = [tmp_path / "m.png"], [tmp_path / f"x.{form}" for form in ("png", "jpg", "webp")]
    for path in files:
        Image.fromarray(RAMP).save(path, exif=exif)
        assert load_masks([masks], [path], (32, 32))[0].any()
