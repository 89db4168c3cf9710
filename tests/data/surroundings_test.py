"""What surrounds pixels decides nothing, what is no picture is refused, and damage is told."""

import io
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rd_jax.data.cache import load_images
from rd_jax.data.decode import DAMAGED, read_image
from rd_jax.data.folders import looks_like_image
from tests.data.bad_images_test import NO_IMAGE, NO_WHITE, bytes_of, tiff
from tests.data.refused import refused

RAMP = (np.arange(48 * 64) % 256).reshape(48, 64).astype(np.uint8)
PNG = bytes_of(format="PNG")


def chunk(kind: bytes, data: bytes, checksum: bytes | None = None) -> bytes:
    return (
        struct.pack(">I", len(data))
        + kind
        + data
        + (checksum or zlib.crc32(kind + data).to_bytes(4))
    )


def png_with(*chunks: bytes) -> bytes:
    return PNG[:33] + b"".join(chunks) + PNG[33:]


def tiff_with(*, after: bytes = b"", next_ifd: int = 0, **tags: int) -> bytes:
    """A little-endian TIFF of 8 bits with more tags, an offset of a next picture, and an end."""
    numbers = {f"t{number}": number for number in (254, 330, 50706)}
    entries = {256: 64, 257: 48, 258: 8, 259: 1, 262: 1, 273: 400, 277: 1, 278: 48, 279: RAMP.size}
    entries |= {numbers[name]: value for name, value in tags.items()}
    packed = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items())]
    head = b"II*\0" + struct.pack("<IH", 8, len(packed)) + b"".join(packed)
    return (head + struct.pack("<I", next_ifd)).ljust(400, b"\0") + RAMP.tobytes() + after


PROFILE = b"name\0\0" + zlib.compress(bytes(3_000_000))
SURROUNDED = {
    "PNG with 2 MB of text": png_with(chunk(b"tEXt", b"notes\0" + 2_000_000 * b"x")),
    "PNG with compressed text": png_with(
        chunk(b"zTXt", b"notes\0\0" + zlib.compress(2_000_000 * b"x"))
    ),
    "PNG with 80 texts of 1 MB": png_with(
        *(chunk(b"zTXt", b"n\0\0" + zlib.compress(900_000 * b"x")) for _ in range(80))
    ),
    "PNG with a profile of 3 MB": png_with(chunk(b"iCCP", PROFILE)),
    "PNG with a wrong checksum of a text": png_with(chunk(b"tEXt", b"notes\0x", b"1234")),
    "PNG with a wrong checksum of EXIF data": png_with(chunk(b"eXIf", b"II*\0", b"1234")),
    "PNG with a broken time": png_with(chunk(b"tIME", b"?"), chunk(b"pHYs", b"?")),
    "PNG with something behind its end": PNG + 100 * b"?",
    "TIFF with a next picture behind its end": tiff_with(next_ifd=10**8),
    "TIFF with a next picture in its pixels": tiff_with(next_ifd=500),
    "TIFF with itself as next picture": tiff_with(next_ifd=8),
    "TIFF with rubbish as next picture": tiff_with(next_ifd=4000, after=300 * b"\xff"),
}


@pytest.mark.parametrize("row", SURROUNDED)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # Pillow's
def test_data_around_the_pixels_change_nothing(tmp_path: Path, row: str) -> None:
    (tmp_path / "x.png").write_bytes(SURROUNDED[row])
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "x.png"))[..., 0], RAMP)


def exif_with(tag: int, kind: int, count: int, value: bytes) -> bytes:
    """EXIF data that say orientation 6, and one odd tag."""
    orientation = struct.pack("<HHII", 274, 3, 1, 6)
    odd = struct.pack("<HHI", tag, kind, count) + struct.pack("<I", 38)
    entries = b"".join(sorted([orientation, odd], key=lambda entry: entry[:2][::-1]))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4) + value


ODD = {
    "-1/0": exif_with(0x829A, 10, 1, struct.pack("<ii", -1, 0)),
    "no number": exif_with(0xC68B, 12, 1, struct.pack("<d", float("nan"))),
    "huge": exif_with(0x829A, 5, 1, struct.pack("<II", 2**32 - 1, 1)),
    "negative where none is": exif_with(0x011A, 10, 1, struct.pack("<ii", -5, 3)),
    "a byte of GPS": exif_with(0x8825, 4, 1, struct.pack("<I", 2**31)),
    "longer than the data": exif_with(0x927C, 7, 10**6, b"?"),
}


@pytest.mark.parametrize("row", ODD)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # Pillow's
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_turned_whatever_else_its_exif_data_hold(
    tmp_path: Path, row: str, form: str
) -> None:
    path = tmp_path / "x"
    Image.fromarray(RAMP).save(path, form, exif=ODD[row], quality=100, lossless=True)
    difference = np.asarray(read_image(path))[..., 0].astype(int) - np.rot90(RAMP, -1)
    assert difference.shape == (64, 48)
    assert np.abs(difference).max() <= 8  # JPEG is lossy


CAMERA = "but raw data of a camera"
RAW = {
    "DNG": tiff_with(t50706=1, t254=0),
    "a preview with pictures inside": tiff_with(t254=1, t330=8),
    "a colour-filter array": tiff(RAMP, photometric=32803),
    "linear data of a sensor": tiff(RAMP, photometric=34892),
    "Canon's": tiff_with()[:8] + b"CR" + tiff_with()[10:],
}


@pytest.mark.parametrize("row", RAW)
@pytest.mark.parametrize("name", ["x.tif", "x", "x.gpr", "x.nrw", "x.iiq"])
def test_raw_data_of_a_camera_are_refused_whatever_they_are_called(
    tmp_path: Path, row: str, name: str
) -> None:
    (tmp_path / name).write_bytes(RAW[row])
    refused(CAMERA, load_images, [tmp_path / name], (32, 32))


def test_a_tiff_of_ones_own_may_hold_previews_inside(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(tiff_with(t330=8))
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "x.tif"))[..., 0], RAMP)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint32, np.int16])
def test_pixels_without_white_are_called_what_they_are(tmp_path: Path, dtype: type) -> None:
    form = {"f": 3, "i": 2, "u": 1}[np.dtype(dtype).kind]
    (tmp_path / "x.tif").write_bytes(tiff(RAMP.astype(dtype), sample_format=form))
    refused(NO_WHITE, load_images, [tmp_path / "x.tif"], (32, 32))


@pytest.mark.parametrize(
    "suffix", [".npy", ".npz", ".jls", ".hdr", ".dicom", ".czi", ".nd2", ".svs", ".heic", ".x3f"]
)
def test_containers_that_are_not_read_are_known_to_be_images(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"?")
    assert looks_like_image(path)
    refused(NO_IMAGE, load_images, [path], (32, 32))


NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
PHOTO = np.asarray(Image.fromarray(NOISE).resize((640, 480), Image.Resampling.BICUBIC))


def jpeg(**options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PHOTO).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


KINDS: dict[str, dict[str, object]] = {
    "baseline": {},
    "grey": {"subsampling": 0, "keep_rgb": True},
    "restarts": {"restart_marker_rows": 1},
    "optimised": {"optimize": True, "subsampling": 2},
    "progressive": {"progressive": True},
}


def is_noted(tmp_path: Path, data: bytes) -> bool:
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    image = read_image(path)
    assert image.size == Image.open(io.BytesIO(data)).size
    return image.info["remark"] == DAMAGED


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3] + b"\xff\xd9"


def with_a_hole(data: bytes) -> bytes:
    return data[: len(data) // 2] + data[len(data) // 2 + 3001 :]


def zeroed(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(2000) + data[middle + 2000 :]


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_jpeg_is_read_as_pillow_reads_it_and_not_noted(tmp_path: Path, kind: str) -> None:
    data = jpeg(**KINDS[kind])
    assert not is_noted(tmp_path, data)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(read_image(tmp_path / "x.jpg"), image)
    for end in (b"", b"\0" * 50, b"\xff\xd8\xff\xe0 a preview \xff\xd9"):
        assert not is_noted(tmp_path, data + end)
        assert not is_noted(tmp_path, data[:-2] + len(end) * b"\xff" + b"\xff\xd9")


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16), (17, 33), (640, 1)])
def test_small_jpegs_are_not_noted(tmp_path: Path, size: tuple[int, int]) -> None:
    for colour in (0, 77, 255):
        for mode in ("L", "RGB", "CMYK"):
            stream = io.BytesIO()
            Image.new(mode, size, (colour,) * len(Image.new(mode, (1, 1)).getbands())).save(
                stream, "JPEG"
            )
            assert not is_noted(tmp_path, stream.getvalue())


# Of several scans, what libjpeg tells Pillow shows nothing.
ONE_SCAN = [kind for kind in KINDS if kind != "progressive"]
DAMAGES = [(kind, damage) for kind in ONE_SCAN for damage in (cut, with_a_hole, zeroed)]


@pytest.mark.parametrize(("kind", "damage"), DAMAGES)
def test_a_damaged_jpeg_that_can_be_decoded_is_noted(
    tmp_path: Path, kind: str, damage: Callable[[bytes], bytes]
) -> None:
    assert is_noted(tmp_path, damage(jpeg(**KINDS[kind])))


def test_damaged_jpegs_are_named_and_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [tmp_path / f"{i}.jpg" for i in range(3)]
    for path, change in zip(paths, (bytes, cut, with_a_hole), strict=True):
        path.write_bytes(change(jpeg()))
    for _ in range(2):  # decoded, and from the cache
        assert len(load_images(paths, (32, 32))[0]) == 3
        assert "2 of 3 images are damaged JPEG files" in caplog.text
        assert f"{paths[1]}, {paths[2]}" in caplog.text
        caplog.clear()


def test_many_chunks_take_no_time_of_their_own(tmp_path: Path) -> None:
    """libpng writes chunks of 8 KB: a photograph of 50 MB took minutes."""
    end, rest = PNG[:33], PNG[33:]
    ballast = chunk(b"tEXt", b"notes\0" + 8000 * b"x")
    path = tmp_path / "x.png"
    path.write_bytes(end + 4000 * ballast + rest)
    before = time.process_time()
    pixels = read_image(path)
    assert time.process_time() - before < 2  # a copy of what is left, at each, takes ten times that
    assert pixels.size == (64, 48)


def test_importing_leaves_pillow_as_it_is_and_large_images_are_read(tmp_path: Path) -> None:
    Image.new("L", (20, 40), 99).save(tmp_path / "x.png")
    Image.new("L", (20, 40), 99).save(tmp_path / "x.tif")
    code = (
        "import sys; from pathlib import Path; from PIL import Image, ImageFile, PngImagePlugin;"
        "before = Image.MAX_IMAGE_PIXELS; from rd_jax.data.decode import read_image;"
        "assert Image.MAX_IMAGE_PIXELS == before; Image.MAX_IMAGE_PIXELS = 100;"
        "assert all(read_image(Path(p)).getpixel((9, 9)) == (99, 99, 99) for p in sys.argv[1:]);"
        "assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == (100, False)"
    )
    files = [str(tmp_path / name) for name in ("x.png", "x.tif")]
    subprocess.run([sys.executable, "-W", "error", "-c", code, *files], check=True)


def test_several_large_images_take_little_more_than_the_pixels_of_one(tmp_path: Path) -> None:
    side = 6144  # the same holds for 16384, where it takes seven times as long to see
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for path in paths:
        Image.new("1", (side, side)).save(path)
    code = (
        "import sys; from pathlib import Path; from resource import *;"
        "from rd_jax.data import cache; cache.num_processors = lambda: 3;"
        "before = getrusage(RUSAGE_SELF).ru_maxrss;"
        "cache.load_images(list(map(Path, sys.argv[1:])), (32, 32));"
        "print(getrusage(RUSAGE_SELF).ru_maxrss - before)"
    )
    run = [sys.executable, "-c", code, *paths]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    assert int(done.stdout) * 1024 < 3.5 * side**2  # as bits, as bytes, and some stripes
