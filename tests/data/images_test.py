"""What is read of image files and of masks: which way up, which depth, which levels."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from rd_jax.data.cache import load_images, load_masks
from rd_jax.data.decode import decode_image
from rd_jax.system.errors import UserError

UPRIGHT = np.linspace(0, 255, 48 * 64).reshape(48, 64).astype(np.uint8)
STORED = np.rot90(UPRIGHT)  # of which orientation 6 says so


def exif(orientation: int | None) -> bytes:
    tags = Image.Exif()
    tags[ExifTags.Base.Make] = "a camera"
    if orientation:
        tags[ExifTags.Base.Orientation] = orientation
    return tags.tobytes()


def xmp(description: bytes) -> bytes:
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-'
        b'syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"'
        + description
        + b"</rdf:RDF></x:xmpmeta>"
    )


XMP = xmp(b' tiff:Orientation="6"/>')
XMP_ELEMENT = xmp(b">\n<tiff:Orientation>6</tiff:Orientation></rdf:Description>")


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png(before: bytes = b"", behind: bytes = b"") -> bytes:
    """A PNG with chunks before and behind its pixels."""
    stream = io.BytesIO()
    Image.fromarray(STORED).save(stream, "PNG")
    plain = stream.getvalue()
    pixels, end = plain.index(b"IDAT") - 4, plain.index(b"IEND") - 4
    return plain[:pixels] + before + plain[pixels:end] + behind + plain[end:]


def in_text(content: bytes) -> bytes:
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + content)


def raw_profile(kind: str, content: bytes) -> bytes:
    text = f"\n{kind}\n{len(content):8}\n{content.hex()}\n".encode()
    return chunk(b"zTXt", f"Raw profile type {kind}\0\0".encode() + zlib.compress(text))


def saved(form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(STORED).save(stream, form, **options)
    return stream.getvalue()


def tiff(**tags: object) -> bytes:
    return saved("TIFF", tiffinfo={ExifTags.Base[name]: value for name, value in tags.items()})


TURNED = {
    "PNG, EXIF": png(chunk(b"eXIf", exif(6)[6:])),
    "PNG, EXIF behind": png(behind=chunk(b"eXIf", exif(6)[6:])),
    "PNG, XMP": png(in_text(XMP)),
    "PNG, XMP behind": png(behind=in_text(XMP)),
    "PNG, EXIF of another kind, XMP behind": png(chunk(b"eXIf", exif(None)[6:]), in_text(XMP)),
    "PNG, raw EXIF behind": png(behind=raw_profile("exif", exif(6))),
    "JPEG, XMP": saved("JPEG", xmp=XMP),
    "JPEG, XMP as an element": saved("JPEG", xmp=XMP_ELEMENT),
    "WebP, XMP": saved("WEBP", xmp=XMP, lossless=True),
    "TIFF, tag": tiff(Orientation=6),
    "TIFF, tag and XMP": tiff(Orientation=6, XMLPacket=XMP),
    "TIFF, XMP": tiff(XMLPacket=XMP),
    "TIFF, compressed, XMP": saved("TIFF", compression="tiff_lzw", tiffinfo={700: XMP}),
}


@pytest.mark.parametrize("row", TURNED)
def test_images_and_masks_are_upright_wherever_their_orientation_stands(
    tmp_path: Path, row: str
) -> None:
    path, mask, lying = (tmp_path / name for name in ("x", "mask.png", "lying.png"))
    path.write_bytes(TURNED[row])
    expected = Image.fromarray(UPRIGHT).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(decode_image(path, (32, 32))[0][..., 0].astype(int) - expected).max() <= 8  # JPEG
    Image.fromarray(UPRIGHT).save(mask)
    Image.fromarray(STORED).save(lying)
    assert load_masks([[mask]], [path], (32, 32))[0].any()
    with pytest.raises(UserError, match=f"48 x 64 pixels, its image {path} 64 x 48"):
        load_masks([[lying]], [path], (32, 32))
    if not row.startswith(("JPEG", "WebP")):  # which no mask may be
        turned, expected_mask = (load_masks([[file]], [mask], (64, 64))[0] for file in (path, mask))
        np.testing.assert_array_equal(turned, expected_mask)


@pytest.mark.parametrize("orientation", [1, None])
def test_exif_data_go_before_xmp_data(tmp_path: Path, orientation: int | None) -> None:
    (tmp_path / "x.jpg").write_bytes(saved("JPEG", exif=exif(orientation), xmp=XMP))
    with Image.open(tmp_path / "x.jpg") as image:
        as_stored = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
    equal = np.array_equal(decode_image(tmp_path / "x.jpg", (32, 32))[0], as_stored)
    assert equal == (orientation == 1)


def deep_grey(values: np.ndarray, path: Path) -> None:
    Image.fromarray(values.astype(np.uint16)).save(path)


def deep_colours(values: np.ndarray, path: Path) -> None:
    header = struct.pack(">IIBBBBB", *values.shape[::-1], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in np.dstack([values] * 3).astype(">u2"))
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks.items()))


@pytest.mark.parametrize("write", [deep_grey, deep_colours])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_few_bits_in_16_are_warned_of_every_time_once_for_all_files(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    write: Callable[[np.ndarray, Path], None],
    bits: int,
) -> None:
    values = np.linspace(0, 2**bits - 1, 48 * 64).reshape(48, 64)
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png", "d.png")]
    write(values * 2 ** (16 - bits), paths[0])
    write(values, paths[1])
    write(values, paths[2])
    Image.fromarray(UPRIGHT // 8).save(paths[3])  # dark, but of 8 bits
    expected = f"2 of 4 images have 16 bits and no value .*: {paths[1]}, {paths[2]}$"
    for _ in range(2):  # decoded, and from the cache
        load_images(paths, (64, 64))
        (record,) = caplog.records
        assert re.search(expected, record.getMessage())
        caplog.clear()


@pytest.mark.parametrize("name", ["big.tif", "little.tif", "turned.tif"])
def test_16_bits_of_any_byte_order_are_scaled(tmp_path: Path, name: str) -> None:
    values = UPRIGHT.astype(np.uint16) * 257
    image = Image.fromarray(values if name != "big.tif" else values.astype(">u2"))
    image.save(tmp_path / name, tiffinfo={274: 1 if name != "turned.tif" else 3})
    expected = UPRIGHT if name != "turned.tif" else UPRIGHT[::-1, ::-1]
    resized = Image.fromarray(expected).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode_image(tmp_path / name, (32, 32))[0][..., 1], resized)


SHAPES = np.zeros((40, 40), np.uint8)
SHAPES[4:12, 4:12], SHAPES[20:30, 8:20], SHAPES[32:36, 30:38] = 1, 2, 3


def labelled(*values: int) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(np.array(values, np.uint8)[SHAPES]).save(path, "PNG")


def deep_labels(path: Path) -> None:
    Image.fromarray(SHAPES.astype(np.uint16)).save(path)


def coloured(*palette: int, mode: str = "P") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        image = Image.fromarray(SHAPES).convert("P")
        image.putpalette(palette)
        image.convert(mode).save(path)

    return write


def one_bit(path: Path) -> None:
    Image.fromarray(SHAPES > 0).save(path)


VOC = (0, 0, 0, 128, 0, 0, 0, 128, 0, 0, 0, 128)
MASKS: dict[str, tuple[Callable[[Path], None], bool]] = {
    "MVTec AD": (labelled(0, 255, 255, 255), False),
    "0 and 1": (labelled(0, 1, 1, 1), False),
    "one bit": (one_bit, False),
    "labels": (labelled(0, 1, 2, 3), True),
    "labels of 16 bits": (deep_labels, True),
    "bright labels": (labelled(0, 253, 254, 255), False),
    "palette": (coloured(*VOC), False),
    "colours": (coloured(*VOC, mode="RGB"), False),
    "noise and a dark shape": (labelled(7, 255, 255, 255), True),
}


@pytest.mark.parametrize("row", MASKS)
def test_a_mask_of_any_kind_marks_its_shapes_and_levels_between_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: str
) -> None:
    write, is_unclear = MASKS[row]
    write(tmp_path / "m.png")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "x.png")
    masks, images = [[], [tmp_path / "m.png"]], [tmp_path / "x.png"] * 2
    for _ in range(2):  # decoded, and from the cache
        loaded = load_masks(masks, images, (40, 40))[0]
        assert loaded.dtype == bool
        np.testing.assert_array_equal(loaded, [np.zeros_like(SHAPES), SHAPES > 0])
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == is_unclear
        expected = f"1 of 1 masks have levels between .*: {tmp_path / 'm.png'}$"
        assert all(re.search(expected, message) for message in messages)
        caplog.clear()


def test_levels_that_count_as_normal_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "m.png"
    labelled(0, 40, 100, 200)(path)
    np.testing.assert_array_equal(load_masks([[path]], [path], (40, 40))[0][0], SHAPES == 3)
    assert "1 of 1 masks have levels between normal and anomalous. Pixels above" in caplog.text
