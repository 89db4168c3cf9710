"""Bad inputs and what each of them gets: one line that names the place, or a defined reading.

The rows stand in five tables: image files, folders, configs, weights, command lines. What else is
refused is tested beside its subject: config_test.py (values of fields), end_to_end_test.py
(workdirs, categories, flags, other trainings), one_class_test.py (data sets), resume and
checkpoint tests (damaged checkpoints), data_test.py (caches).
"""

import io
import json
import os
import pickle
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from PIL import ExifTags, Image
from safetensors.numpy import save_file

from rd_jax import load_teacher
from rd_jax.config import Config, get_config, validate
from rd_jax.data import formats
from rd_jax.data.decode import decode_image
from rd_jax.data.images import load_images, load_masks
from rd_jax.data.mvtec import find_categories, load_category, read_category
from rd_jax.data.splits import check_splits
from rd_jax.data.synthetic import write_category
from rd_jax.system.errors import UserError
from rd_jax.weights.convert import _torch_name
from rd_jax.weights.teacher import load_rd4ad
from tests.command import SMALL, assert_one_line, run

RAMP = (np.arange(48 * 64) % 256).reshape(48, 64).astype(np.uint8)


def refused(message: str, call: Callable[..., Any], *arguments: Any) -> str:
    """Asserts that a call is refused in one line of text that holds `message`; returns it."""
    with pytest.raises(UserError) as error:
        call(*arguments)
    line = str(error.value)
    assert message in line
    assert len(line.splitlines()) == 1
    line.encode()
    return line


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
NO_IMAGE = "(not an image in PNG, JPEG, JPEG 2000, BMP, TIFF, WebP, GIF, AVIF or PNM)"
TWO = "(2 pictures in one file: save the one that is meant)"
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
    "PNG whose EXIF data are none": (
        content(bytes_of(format="PNG", exif=b"Exif\0\0?")),
        "(its EXIF data cannot be read (",
    ),
    "decompression bomb": (
        content(png_of_size(50_000, 50_000)),
        "(Image size (2500000000 pixels) exceeds limit of 536870912 pixels, could be ",
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
    refused(f"1 of 2 files cannot be read: {files[1]} {message}", load_images, files, 32)


def test_a_file_that_fails_while_it_is_read_is_named(tmp_path: Path) -> None:
    if not os.path.exists("/proc/self/mem"):
        pytest.skip("there is no file here that fails for every user, /proc/self/mem")
    (tmp_path / "x.png").symlink_to("/proc/self/mem")
    refused(f"{tmp_path / 'x.png'} ([Errno 5] ", load_images, [tmp_path / "x.png"], 32)


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
    assert np.abs(decode_image(tmp_path / "x.png", 32)[0] - resized).max() <= 8  # JPEG is lossy


def test_images_of_one_pixel_and_of_100_megapixels_are_read(tmp_path: Path) -> None:
    Image.new("L", (1, 1), 77).save(tmp_path / "1.png")
    Image.new("L", (12_000, 8_400), 99).save(tmp_path / "2.png", compress_level=1)
    decoded = load_images(sorted(tmp_path.iterdir()), 32)[0]
    np.testing.assert_array_equal(decoded.min((1, 2, 3)), [77, 99])
    np.testing.assert_array_equal(decoded.max((1, 2, 3)), [77, 99])


MARKED = np.where(RAMP > 250, 255, 0).astype(np.uint8)
MASKS = {
    "of another size": (image(MARKED[:, :-1]), "(the mask has 63 x 48 pixels, its image "),
    "lying": (image(MARKED.T), "(the mask has 48 x 64 pixels, its image "),
    "empty": (image(0 * MARKED), "(mask values are 0 to 0, of which none would be anomalous: wri"),
    "labels from 1": (image(MARKED // 255 + 1), "(mask values are 1 to 2, of which all would be "),
    "a dark JPEG": (image(MARKED // 3, "JPEG"), " of which none would be anomalous: write anom"),
    "colours without black": (
        image(np.where(MARKED[..., None], [200, 0, 0], [31, 119, 180]).astype(np.uint8)),
        "(mask values are 180 to 200, of which all would be anomalous: write anomalous pixels as ",
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
    line = refused(message, load_masks, [tmp_path / "m.png"], [tmp_path / "x.png"], 32)
    assert line.startswith(f"1 of 1 files cannot be read: {tmp_path / 'm.png'} (")


def test_a_mask_is_compared_with_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    Image.fromarray(MARKED.T).save(tmp_path / "m.png")
    masks, files = [tmp_path / "m.png"], [tmp_path / f"x.{form}" for form in ("png", "jpg", "webp")]
    for path in files:
        Image.fromarray(RAMP).save(path, exif=exif)
        assert load_masks(masks, [path], 32).any()


def test_a_mask_is_compared_again_when_its_image_has_changed(category: Path) -> None:
    load_category(category.parent, "weave", 32)
    Image.fromarray(RAMP).save(category / "test" / "stain" / "000.png")
    refused("the mask has 64 x 64 pixels", load_category, category.parent, "weave", 32)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_category(folder, num_train=2, num_test=1, size=64)
    return folder / "weave"


@pytest.fixture
def category(tmp_path: Path, written: Path) -> Path:
    """A category of its own for each test."""
    return shutil.copytree(written, tmp_path / "weave")


def renamed(old: str, new: str) -> Callable[[Path], Any]:
    return lambda root: (root / old).rename(root / new)


def copied(old: str, new: str) -> Callable[[Path], Any]:
    def change(root: Path) -> None:
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / old, root / new)

    return change


def linked(name: str, target: str) -> Callable[[Path], Any]:
    def change(root: Path) -> None:
        path = root / name
        if path.is_dir():
            shutil.rmtree(path)
        path.symlink_to(target)

    return change


def replaced_by_a_file(name: str) -> Callable[[Path], Any]:
    def change(root: Path) -> None:
        shutil.rmtree(root / name)
        (root / name).write_text("")

    return change


COMPOSED, DECOMPOSED = "b\u00fcrste", "bu\u0308rste"
DEEP = "lies too deep: move it up into"
ONE, MASK = "train/good/000.png", "ground_truth/stain/000_mask.png"
NEITHER = "is neither a file nor a folder, nor a link to one that can be reached: mend or remove it"
NO_FOLDER = "is not a folder, nor a link to one that can be reached"
FOLDERS = {
    "folder named like an image": (
        lambda root: (root / "train/good/x.png").mkdir(),
        "train/good/x.png is a folder, named like an image: rename or remove it",
    ),
    "broken link": (linked("train/good/x.png", "/no/such"), f"train/good/x.png {NEITHER}"),
    "loop of links": (linked("test/good/x.png", "x.png"), f"test/good/x.png {NEITHER}"),
    "pipe": (lambda root: os.mkfifo(root / "test/good/x.png"), f"test/good/x.png {NEITHER}"),
    "broken link to the test images": (linked("test", "/no/such"), f"test {NO_FOLDER}"),
    "broken link to a defect": (linked("test/stain", "/no/such"), f"test/stain {NEITHER}"),
    "broken link to the masks": (linked("ground_truth", "/no"), f"ground_truth {NO_FOLDER}"),
    "file in the place of train": (replaced_by_a_file("train"), f"train {NO_FOLDER}"),
    "file in the place of test": (replaced_by_a_file("test"), f"test {NO_FOLDER}"),
    "no training images": (
        lambda root: [path.unlink() for path in (root / "train/good").iterdir()],
        "train/good holds no images (PNG, JPEG, ",
    ),
    "no train/good": (renamed("train/good", "train/normal"), "train/normal holds images, but only"),
    "defects to train on": (copied(ONE, "train/bad/0.png"), "train/bad holds images, but only th"),
    "image beside train/good": (copied(ONE, "train/0.png"), "train/0.png lies beside the folders"),
    "image beside test/good": (copied(ONE, "test/0.png"), "test/0.png lies beside the folders in"),
    "folder in a folder": (copied(ONE, "test/good/more/0.png"), f"test/good/more/0.png {DEEP}"),
    "folders in folders": (copied(ONE, "train/good/a/b/1.png"), f"train/good/a/b/1.png {DEEP}"),
    "deep in a defect": (copied(ONE, "test/stain/a/b/c/1.png"), f"test/stain/a/b/c/1.png {DEEP}"),
    "deep in the masks": (
        copied(MASK, "ground_truth/stain/a/b/c/1_mask.png"),
        f"ground_truth/stain/a/b/c/1_mask.png {DEEP}",
    ),
    "deep, without a suffix": (copied(ONE, "train/good/a/b/1"), f"train/good/a/b/1 {DEEP}"),
    "link to images": (
        linked("train/good/all", "../../test"),
        f"train/good/all/distortion/000.png {DEEP}",
    ),
    "icon": (
        lambda root: Image.fromarray(RAMP).save(root / "train/good/x.ico"),
        "train/good/x.ico is an image, but not in PNG, JPEG, ",
    ),
    "photograph of a telephone": (
        lambda root: (root / "test/good/x.HEIC").write_bytes(b"?"),
        "test/good/x.HEIC is an image, but not in PNG, JPEG, ",
    ),
    "raw data of a camera, with a preview": (
        lambda root: Image.fromarray(RAMP).save(root / "train/good/x.dng", "TIFF"),
        "train/good/x.dng is an image, but not in PNG, JPEG, ",
    ),
    "good with a capital": (renamed("test/good", "test/Good"), "test/Good is not called good: ren"),
    "good with a space": (renamed("test/good", "test/good "), "test/good  is not called good: ren"),
    "train/Good": (renamed("train/good", "train/Good"), "train/Good is not called good: rename or"),
    "Train beside train": (copied(ONE, "Train/good/0.png"), "Train is not called train: rename or"),
    "Test": (renamed("test", "Test"), "Test is not called test: rename or move it"),
    "Ground Truth": (
        renamed("ground_truth", "Ground Truth"),
        "Ground Truth is not called ground_t",
    ),
    "groundtruth": (
        renamed("ground_truth", "groundtruth"),
        "groundtruth is not called ground_trut",
    ),
    "two spellings of a defect": (
        lambda root: [(root / "test" / name).mkdir() for name in (COMPOSED, DECOMPOSED)],
        f"two folders in {{root}}/test are called {COMPOSED}, with its accents spelled in two ways",
    ),
    "image without a mask": (lambda root: (root / MASK).unlink(), f"{MASK} of test image "),
    "images without a mask": (
        lambda root: shutil.rmtree(root / "ground_truth/stain"),
        f"{MASK} of test image ",
    ),
    "mask by another name": (
        renamed(MASK, "ground_truth/stain/000-msk.png"),
        "is missing: rename {root}/ground_truth/stain/000-msk.png if it is that, add it, or remove",
    ),
    "masks in a folder of another name": (
        renamed("ground_truth/stain", "ground_truth/Stain"),
        "is missing: rename {root}/ground_truth/Stain/000_mask.png if it is that, add it, or rem",
    ),
    "mask without an image": (
        lambda root: (root / "test/stain/000.png").unlink(),
        f"{MASK} is the mask of no anomalous image in test/stain: remove it, or mend its name",
    ),
    "masks without images": (
        lambda root: shutil.rmtree(root / "test/stain"),
        f"{MASK} is the mask of no anomalous image in test/stain",
    ),
    "mask of a normal image": (
        copied(MASK, "ground_truth/good/000_mask.png"),
        "ground_truth/good/000_mask.png is the mask of no anomalous image in test/good: remove it",
    ),
    "two masks of one image": (
        copied(MASK, "ground_truth/stain/000.png"),
        "ground_truth/stain/000.png are both masks of {root}/test/stain/000.png: remove one",
    ),
    "two forms of a mask": (
        copied(MASK, "ground_truth/stain/000_mask.tif"),
        "ground_truth/stain/000_mask.tif are both masks of {root}/test/stain/000.png: remove one",
    ),
    "mask in a format with losses": (
        renamed(MASK, "ground_truth/stain/000_mask.JPG"),
        "ground_truth/stain/000_mask.JPG may have lost pixels: save it in one of .bmp, .gif, ",
    ),
    "two images of one mask": (
        lambda root: Image.fromarray(RAMP).save(root / "test/stain/000.jpg"),
        "share ",
    ),
}


@pytest.mark.parametrize("row", FOLDERS)
def test_what_a_folder_would_leave_out_in_silence_is_refused(category: Path, row: str) -> None:
    change, message = FOLDERS[row]
    change(category)
    message = message.replace("{root}", str(category))
    line = refused(message, read_category, category.parent, "weave")  # before anything is decoded
    assert str(category) in line


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("000.png", "000.png"),
        ("000.png", "000_mask.PNG"),
        ("000.JPG", "000.Tiff"),
        ("000.png", "000_mask.bmp"),
        (f"{COMPOSED}.png", f"{DECOMPOSED}_mask.png"),
        (f"{DECOMPOSED}.png", f"{COMPOSED}.png"),
    ],
)
def test_a_mask_is_found_by_its_images_name(category: Path, image: str, mask: str) -> None:
    (category / "test/stain/000.png").rename(category / "test/stain" / image)
    (category / MASK).rename(category / "ground_truth/stain" / mask)
    (category / "test/stain").rename(category / "test" / COMPOSED)
    (category / "ground_truth/stain").rename(category / "ground_truth" / DECOMPOSED)
    found = {i.path: i.mask for i in read_category(category.parent, "weave").test}
    expected = category / "ground_truth" / DECOMPOSED / mask
    assert found[category / "test" / COMPOSED / image] == expected


def test_links_in_circles_are_followed_once(category: Path) -> None:
    expected = read_category(category.parent, "weave")
    (category / "train/good/itself").symlink_to(".")
    (category / "train/good/back").symlink_to("..")
    (category / "test/good/deep/deeper").mkdir(parents=True)
    (category / "test/good/deep/deeper/up").symlink_to("../..")
    assert read_category(category.parent, "weave") == expected


def test_images_in_folders_of_other_names_are_said_not_to_be_used(
    category: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("validation/good/1.png", "masks/1/2/3.png", "4.png"):
        copied(ONE, name)(category)
    copied(ONE, "../loose/1.png")(category)
    (category / "notes").mkdir()
    (category / "notes/1.txt").write_text("no image")
    load_category(category.parent, "weave", 32)
    message = "weave: images are not used from 4.png, masks, validation, but from train, test, grou"
    assert caplog.text.count("images are not used") == 1
    assert message in caplog.text
    caplog.clear()
    check_splits(get_config(data_dir=str(category.parent)))
    assert "images are not used from loose, but from weave alone" in caplog.text


@pytest.mark.parametrize(("on_disk", "named"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_a_category_is_found_however_its_accents_are_spelled(
    category: Path, on_disk: str, named: str
) -> None:
    root = category.rename(category.parent / on_disk)
    assert read_category(root.parent, named) == read_category(root.parent, on_disk)
    assert len(read_category(root.parent, named).train) == 2
    (root.parent / named / "train/good").mkdir(parents=True)
    refused("are called", read_category, root.parent, named)
    refused("are called", find_categories, root.parent)


def test_what_looks_like_a_category_is_said_to_be_none(category: Path) -> None:
    data_dir = category.parent
    copied(ONE, "../parts/Train/good/1.png")(category)
    refused("parts/Train is not called train", find_categories, data_dir)
    refused("parts/Train is not called train", read_category, data_dir, "parts")
    refused("parts/Train is not called train", find_categories, data_dir / "parts")
    assert len(read_category(data_dir, "weave").train) == 2
    copied(ONE, "../bare/1.png")(category)
    refused("bare has no train/good: put the good images there", read_category, data_dir, "bare")


def test_a_space_behind_a_categorys_name_is_shown(category: Path) -> None:
    category.rename(category.parent / "weave ")
    refused("it has 'weave '", read_category, category.parent, "weave")
    assert len(read_category(category.parent, "weave ").train) == 2


def test_a_linked_category_is_read_as_one(category: Path) -> None:
    (category.parent / "linked").symlink_to(category)
    assert find_categories(category.parent) == ["linked", "weave"]
    assert len(read_category(category.parent, "linked").train) == 2


@pytest.mark.parametrize("name", ["..", "../weave", ".", "/", "weave/", "", "weave\0", "WEAVE"])
def test_a_category_is_named_as_its_folder_is(category: Path, name: str) -> None:
    message = f"is not in data_dir {category.parent}: it has weave"
    refused(message, load_category, category.parent, name, 32)


def test_a_data_dir_is_a_folder_of_categories(category: Path) -> None:
    data_dir = category.parent
    (data_dir / "file").write_text("")
    refused("file is not a folder: set --config.data_dir", find_categories, data_dir / "file")
    refused("absent is not a folder: set --config", find_categories, data_dir / "absent")
    refused(f"set --config.data_dir={data_dir} --config.category=weave", find_categories, category)
    refused("holds no category: expected", find_categories, category / "train" / "good")
    (data_dir / "screw").symlink_to("/no/such")
    refused(f"screw {NEITHER}", find_categories, data_dir)


@contextmanager
def nobody() -> Iterator[None]:
    """Permissions do not bind the superuser, under whom tests may run."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_what_must_not_be_read_is_named(written: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        root = shutil.copytree(written, Path(folder) / "weave")
        with nobody():  # whose cache is not to be read either
            assert len(load_category(root.parent, "weave", 32).train) == 2
        assert "no cache is kept" in caplog.text
        for name in ("train/good/000.png", "test/good", "."):
            path, mode = root / name, (root / name).stat().st_mode
            path.chmod(0)
            with nobody():
                line = refused("ermission denied", load_category, root.parent, "weave", 32)
            assert str(path) in line
            path.chmod(mode)


def test_what_is_no_image_is_left_out(category: Path) -> None:
    expected = read_category(category.parent, "weave")
    for name in (".hidden.png", "._000.png", "Thumbs.db", "desktop.ini", "000.json", "notes.txt"):
        for folder in ("train/good", "test/good", "test/stain", "ground_truth/stain"):
            (category / folder / name).write_text("no image")
        (category.parent / name).write_text("no category")
    (category / "test" / ".cache").mkdir()
    for name in ("train/good/@eaDir/000.png/THUMB.jpg", "__MACOSX/000.png", "test/#recycle/0.png"):
        copied(ONE, name)(category)
    for name in ("README", "LICENSE", "report.pdf", "film.mp4", "values.h5"):
        (category / "train/good" / name).write_text("Python's")
    (category.parent / "notes").mkdir()
    assert read_category(category.parent, "weave") == expected
    assert find_categories(category.parent) == ["weave"]


def test_what_a_file_without_a_suffix_holds_says_if_it_is_an_image(category: Path) -> None:
    for number, name in enumerate(("scan", "scan.001", "scan.png.part", "scan.gif", "scan.PNG ")):
        Image.fromarray(RAMP + np.uint8(number)).save(category / "train/good" / name, "PNG")
    split = load_category(category.parent, "weave", 32)
    names = ["000.png", "001.png", "scan", "scan.001", "scan.PNG ", "scan.gif", "scan.png.part"]
    assert split.train_names == names
    (category / "train/good/scan").write_bytes(PNG[: len(PNG) // 2])
    refused("train/good/scan (image file is tr", load_category, category.parent, "weave", 32)


def test_files_are_listed_without_being_opened(
    category: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    monkeypatch.setattr(formats, "open_image", opened.append)
    for name in ("a.txt", "b.csv", "c.json", "d.xml", "e.PNG", "f.jp2"):
        (category / "train/good" / name).write_text("")
    assert len(read_category(category.parent, "weave").train) == 4
    assert not opened


def test_without_normal_test_images_everything_is_anomalous(category: Path) -> None:
    shutil.rmtree(category / "test" / "good")
    assert load_category(category.parent, "weave", 32).labels.all()


def test_files_that_share_a_stem_are_different_images_where_there_are_no_masks(
    category: Path,
) -> None:
    for folder in ("train/good", "test/good"):
        Image.fromarray(RAMP).save(category / folder / "000.jpg")
    split = load_category(category.parent, "weave", 32)
    assert split.train_names == ["000.jpg", "000.png", "001.png"]
    assert split.test_names[split.test_names.index("good/000.jpg") + 1] == "good/000.png"


def test_a_mask_too_small_for_the_image_size_is_said(
    category: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[20, 20] = 255
    Image.fromarray(mask).save(category / MASK)
    split = load_category(category.parent, "weave", 32)
    assert "at 32x32 pixels nothing is left of 1 masks" in caplog.text
    assert split.masks is not None
    assert split.masks.any((1, 2)).sum() == split.labels.sum() - 1


def test_reading_writes_nothing_into_the_data(category: Path) -> None:
    def state() -> list[tuple[Path, int]]:
        return [(path, path.stat().st_mtime_ns) for path in sorted(category.rglob("*"))]

    before = state()
    load_category(category.parent, "weave", 32)
    assert state() == before


def test_names_that_are_not_utf_8_or_hold_line_breaks_can_be_written_everywhere(
    category: Path,
) -> None:
    for name in (b"caf\xe9.png", b"two\nlines.png"):
        try:
            shutil.copy(category / ONE, category / "test/good" / os.fsdecode(name))
        except OSError:
            pytest.skip("this file system takes UTF-8 alone")
    split = load_category(category.parent, "weave", 32)
    assert {"good/caf\\udce9.png", "good/two lines.png"} < set(split.test_names)
    json.dumps(split.test_names, ensure_ascii=False).encode()
    (category / "test/good" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"no image")
    refused("caf\\udce9.png (not an image", load_category, category.parent, "weave", 32)
    name = os.fsdecode(b"caf\xe9")
    category.rename(category.parent / name)
    refused("rename it to printable text", read_category, category.parent, name)


CONFIGS = {
    "truth for a number": ({"learning_rate": True}, "config.learning_rate=True: must be a number"),
    "several for one": ({"loss": np.array(["flattened"] * 2)}, "must be one of per_position, fla"),
    "number for a text": ({"data_dir": 3}, "config.data_dir=3: must be a printable text"),
    "bytes that are not UTF-8": ({"data_dir": "/\udce9"}, "must be a printable text, not empty"),
    "line break": ({"category": "a\nb"}, r"config.category='a\nb': must be a printable text"),
    "unknown field": ({"leraning_rate": 0.1}, "config.leraning_rate: there is no such field; "),
    "seed twice": ({"seeds": (1, 1)}, "config.seeds=(1, 1): must be a choice of different seeds"),
    "text for a list": ({"scales": "12"}, "config.scales='12': must be a non-empty ascending"),
    "all images held out": ({"holdout": 1.0}, "config.holdout=1.0: must be a number in [0, 1)"),
    "blur beyond the image": (
        {"blur_sigma": 33.0},
        "config.blur_sigma=33.0: must be at most config.image_size=32",
    ),
    "not a number": ({"blur_sigma": float("nan")}, "config.blur_sigma=nan: must be a number >= 0"),
}


@pytest.mark.parametrize("kind", [ConfigDict, lambda fields: SimpleNamespace(**fields)])
@pytest.mark.parametrize("row", CONFIGS)
def test_a_config_is_refused_with_the_field_and_what_is_allowed(
    config: Config, row: str, kind: Callable[[dict], Any]
) -> None:
    changes, message = CONFIGS[row]
    config.backbone = "resnet18"
    fields = dict(config)
    validate(kind(fields))
    refused(message, validate, kind(fields | changes))


@pytest.fixture(scope="module")
def state_dict() -> dict[str, np.ndarray]:
    """Random weights of the tiny backbone in PyTorch's names and layouts."""
    variables = flatten_dict(load_teacher("tiny", "random"))
    arrays = {_torch_name(path): np.asarray(value) for path, value in variables.items()}
    return {
        name: np.ascontiguousarray(a.transpose(3, 2, 0, 1)) if a.ndim == 4 else a
        for name, a in arrays.items()
    }


TENSORS = {
    "none at all": (lambda w: w.clear(), ", ... (45)"),
    "missing": (lambda w: w.pop("bn1.weight"), "missing: bn1.weight (1)"),
    "another shape": (
        lambda w: w.update({"conv1.weight": np.zeros((64, 1, 7, 7), np.float32)}),
        "of another shape: conv1.weight (64, 1, 7, 7) (1)",
    ),
    "not a number": (lambda w: w["bn1.weight"].fill(np.nan), "not finite: bn1.weight (1)"),
    "beyond float32": (
        lambda w: w.update({"bn1.bias": np.full_like(w["bn1.bias"], 1e300, np.float64)}),
        "not finite: bn1.bias (1)",
    ),
    "negative variance": (lambda w: w["bn1.running_var"].fill(-1), "negative: bn1.running_var (1)"),
    "complex": (
        lambda w: w.update({"bn1.bias": w["bn1.bias"] + 1j}),
        "not of real numbers: bn1.bias complex64 (1)",
    ),
    "text": (
        lambda w: w.update({"bn1.bias": np.array(["a"] * w["bn1.bias"].size)}),
        "not of real numbers: bn1.bias <U1 (1)",
    ),
}


@pytest.mark.parametrize("row", TENSORS)
def test_weights_that_do_not_fit_are_refused_with_their_names(
    tmp_path: Path, state_dict: dict[str, np.ndarray], row: str
) -> None:
    path = tmp_path / "w.npz"
    np.savez(path, **state_dict)
    load_teacher("tiny", str(path))
    change, message = TENSORS[row]
    broken = {name: value.copy() for name, value in state_dict.items()}
    change(broken)
    np.savez(path, **broken)
    refused(message, load_teacher, "tiny", str(path))


class Payload:
    """Pickled, it makes a file where it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def safetensors_of(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def bytes_of_array(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz_of_a_lie(path: Path) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**15,)}
    with zipfile.ZipFile(path, "w") as archive, archive.open("conv1.weight.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, header)


def tensor_of(shape: list[int], offsets: list[int]) -> dict[str, Any]:
    return {"conv1.weight": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}


WEIGHT_FILES = {
    "absent": ("w.npz", lambda _: None, "is not a file: give 'imagenet', 'embedded'"),
    "a folder": ("w.npz", Path.mkdir, "is not a file: give 'imagenet', 'embedded'"),
    "another suffix": ("w.bin", content(b"?"), ": give a .safetensors, .npz or .pth file"),
    "empty safetensors": ("w.safetensors", content(b""), "is not a readable safetensors file"),
    "safetensors longer than the file": (
        "w.safetensors",
        content(safetensors_of(tensor_of([1000], [0, 4000]), bytes(8))),
        "is not a readable safetensors file (",
    ),
    "safetensors of another length than the shape's": (
        "w.safetensors",
        content(safetensors_of(tensor_of([1000], [0, 8]), bytes(8))),
        "is not a readable safetensors file (",
    ),
    "safetensors with an endless header": (
        "w.safetensors",
        content(struct.pack("<Q", 2**62) + b"{}"),
        "is not a readable safetensors file (",
    ),
    "empty npz": ("w.npz", content(b""), "is not a readable npz file (No data left in file)"),
    "one array as npz": (
        "w.npz",
        content(bytes_of_array(RAMP)),
        "is not a readable npz file (",
    ),
    "npz larger than memory": ("w.npz", npz_of_a_lie, "is not a readable npz file ("),
    "empty pth": ("w.pth", content(b""), "is not a state dict of tensors ("),
    "text as pth": ("w.pth", content(b"weights"), "is not a state dict of tensors ("),
}


@pytest.mark.parametrize("row", WEIGHT_FILES)
def test_a_file_that_holds_no_weights_is_named(tmp_path: Path, row: str) -> None:
    name, make, message = WEIGHT_FILES[row]
    if name.endswith(".pth"):
        pytest.importorskip("torch", reason="the extra `parity` is not installed")
    make(tmp_path / name)
    line = refused(message, load_teacher, "tiny", str(tmp_path / name))
    assert str(tmp_path / name) in line


@pytest.mark.parametrize("form", ["npz", "array.npz", "pth", "old.pth", "rd4ad.pth"])
def test_code_in_a_file_of_weights_is_never_run(tmp_path: Path, form: str) -> None:
    marker, path = tmp_path / "was run", tmp_path / f"w.{form}"
    pickle.loads(pickle.dumps(Payload(marker)))
    marker.unlink()  # the payload works
    load: Callable[[], Any] = partial(load_teacher, "tiny", str(path))
    if form == "array.npz":
        np.savez(path, **{"conv1.weight": np.array([Payload(marker)], object)})
    elif form in ("npz", "old.pth"):
        path.write_bytes(pickle.dumps({"conv1.weight": Payload(marker)}))
    if path.suffix == ".pth":
        torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
        if form != "old.pth":
            torch.save({"bn": {}, "decoder": Payload(marker)}, path)
        if form == "rd4ad.pth":
            load = partial(load_rd4ad, path, "tiny")
    refused(str(path), load)
    assert not marker.exists()


def test_tensors_of_a_pth_file_may_need_gradients_but_must_be_dense(
    tmp_path: Path, state_dict: dict[str, np.ndarray]
) -> None:
    torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
    path = tmp_path / "w.pth"
    tensors = {n: torch.nn.Parameter(torch.from_numpy(a.copy())) for n, a in state_dict.items()}
    torch.save(tensors, path)
    load_teacher("tiny", str(path))
    for value in ({"weight": tensors}, 3, torch.eye(3).to_sparse()):
        torch.save({"bn1.weight": value}, path)
        refused("is not a state dict of tensors (", load_teacher, "tiny", str(path))


def test_safetensors_of_half_precision_are_read(
    tmp_path: Path, state_dict: dict[str, np.ndarray]
) -> None:
    halved = {name: value.astype(np.float16) for name, value in state_dict.items()}
    save_file(halved, tmp_path / "w.safetensors")
    loaded = load_teacher("tiny", str(tmp_path / "w.safetensors"))
    np.testing.assert_array_equal(loaded["params"]["bn1"]["scale"], halved["bn1.weight"])


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (
            lambda root: (root / "train/good" / os.fsdecode(b"caf\xe9.png")).symlink_to("/no/such"),
            [],
            f"caf\\udce9.png {NEITHER}",
        ),
        (
            lambda root: Image.fromarray(RAMP).save(root / "test/stain/000.jpg"),
            [],
            "share ",
        ),
        (
            lambda root: (root.parent / "w.npz").write_bytes(pickle.dumps(Payload(root / "run"))),
            ["--config.teacher_weights={data_dir}/w.npz"],
            "w.npz is not a readable npz file (",
        ),
        (
            lambda _: None,
            ["--config.data_dir=~no_such_user/data"],
            "data_dir ~no_such_user/data is not a folder",
        ),
    ],
    ids=["name of bytes", "shared mask", "code as weights", "home of nobody"],
)
def test_a_bad_input_is_one_line_on_the_command_line(
    category: Path,
    tmp_path_factory: pytest.TempPathFactory,
    change: Callable[[Path], Any],
    arguments: list[str],
    message: str,
) -> None:
    change(category)
    data_dir = category.parent
    done = run(
        *("--config", "configs/mvtec.py:weave", f"--config.data_dir={data_dir}", *SMALL),
        *("--workdir", str(tmp_path_factory.mktemp("work"))),
        *(argument.format(data_dir=data_dir) for argument in arguments),
    )
    assert_one_line(done, message)
    assert not (category / "run").exists()
