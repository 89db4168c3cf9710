"""What a folder would leave out in silence is refused; what is no image is left out."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rd_jax.data import Row, Source, Split, folders
from rd_jax.data.sources import find_categories
from rd_jax.data.synthetic import write_category
from tests.data.refused import refused

RAMP = (np.arange(48 * 64) % 256).reshape(48, 64).astype(np.uint8)


def source(data_dir: Path, size: int = 32) -> Source:
    return Source(str(data_dir), "", (size, size), "stretch")


def read_category(data_dir: Path, name: str) -> tuple[Row, ...]:
    [category] = find_categories(source(data_dir), name)
    return category.rows


def num_train(data_dir: Path, name: str) -> int:
    return sum(row.split == "train" for row in read_category(data_dir, name))


def names_in(data_dir: Path) -> list[str]:
    return [category.name for category in find_categories(source(data_dir))]


def load_category(data_dir: Path, name: str, size: int) -> Split:
    [category] = find_categories(source(data_dir, size), name)
    return category.load()


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
FOLDERS = {
    "broken link": (linked("train/good/x.png", "/no/such"), f"train/good/x.png {NEITHER}"),
    "loop of links": (linked("test/good/x.png", "x.png"), f"test/good/x.png {NEITHER}"),
    "pipe": (lambda root: os.mkfifo(root / "test/good/x.png"), f"test/good/x.png {NEITHER}"),
    "broken link to the test images": (linked("test", "/no/such"), f"test {NEITHER}"),
    "broken link to a defect": (linked("test/stain", "/no/such"), f"test/stain {NEITHER}"),
    "broken link to the masks": (linked("ground_truth", "/no"), f"ground_truth {NEITHER}"),
    "file in the place of train": (replaced_by_a_file("train"), "train/good holds no images (PNG"),
    "no training images": (
        lambda root: [path.unlink() for path in (root / "train/good").iterdir()],
        "train/good holds no images (PNG, JPEG, ",
    ),
    "normal training images twice": (
        copied(ONE, "train/OK/0.png"),
        "train has normal images in OK, good: move them into one",
    ),
    "normal test images twice": (
        copied(ONE, "test/normal/0.png"),
        "test has normal images in good, normal: move them into one",
    ),
    "defects to hold out": (
        copied(ONE, "validation/bad/0.png"),
        "validation/bad holds images, but",
    ),
    "defects to train on": (copied(ONE, "train/bad/0.png"), "train/bad holds images, but only th"),
    "image beside train/good": (copied(ONE, "train/0.png"), "train/0.png lies beside the folders"),
    "image beside test/good": (copied(ONE, "test/0.png"), "test/0.png lies beside the folders in"),
    "folder in a folder": (copied(ONE, "test/good/more/0.png"), f"test/good/more/0.png {DEEP}"),
    "folders in folders": (copied(ONE, "train/good/a/b/1.png"), f"train/good/a/b/1.png {DEEP}"),
    "deep in a defect": (copied(ONE, "test/stain/a/b/c/1.png"), f"test/stain/a/b/c/1.png {DEEP}"),
    "deep in the masks": (
        copied(MASK, "ground_truth/stain/a/b/c/1_mask.png"),
        "ground_truth/stain/a/b/c/1_mask.png is the mask of no anomalous image",
    ),
    "deep, without a suffix": (copied(ONE, "train/good/a/b/1"), f"train/good/a/b/1 {DEEP}"),
    "link to images": (
        linked("train/good/all", "../../test"),
        f"train/good/all/distortion/000.png {DEEP}",
    ),
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
        "is missing: add it, mend its name, or remove {root}/ground_truth to evaluate images alone",
    ),
    "masks in a folder of another name": (
        renamed("ground_truth/stain", "ground_truth/Stain"),
        "is missing: add it, mend its name, or remove {root}/ground_truth to evaluate images alone",
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
        "ground_truth/stain/000_mask.png are masks of one image: remove one",
    ),
    "two forms of a mask": (
        copied(MASK, "ground_truth/stain/000_mask.tif"),
        "ground_truth/stain/000_mask.tif are masks of one image: remove one",
    ),
    "two images of one mask": (
        lambda root: Image.fromarray(RAMP).save(root / "test/stain/000.jpg"),
        "share one mask: rename one",
    ),
}


@pytest.mark.parametrize("row", FOLDERS)
def test_images_that_a_folder_would_leave_out_silently_are_refused(
    category: Path, row: str
) -> None:
    change, message = FOLDERS[row]
    change(category)
    message = message.replace("{root}", str(category))
    line = refused(message, read_category, category.parent, "weave")  # before anything is decoded
    assert str(category) in line


@pytest.mark.parametrize("name", ["x.ico", "x.HEIC", "x.dng"])
def test_an_image_in_another_format_is_not_left_out_in_silence(category: Path, name: str) -> None:
    form = "ICO" if name == "x.ico" else "TIFF"
    Image.fromarray(RAMP).save(category / "train/good" / name, form)
    (category / "train/good/y.heic").write_bytes(b"?")
    line = refused("y.heic (not an im", load_category, category.parent, "weave", 32)
    assert name == "x.HEIC" or f"{name} (not an image in PNG, JPEG, " in line


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
    found = {row.image: row.masks for row in read_category(category.parent, "weave")}
    expected = category / "ground_truth" / DECOMPOSED / mask
    assert found[category / "test" / COMPOSED / image] == (expected,)


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
    for name in ("masks/1/2/3.png", "4.png"):
        copied(ONE, name)(category)
    copied(ONE, "../loose/1.png")(category)
    (category / "notes").mkdir()
    (category / "notes/1.txt").write_text("no image")
    load_category(category.parent, "weave", 32)
    message = (
        "weave: images are not used from 4.png, masks, only from train, validation, test, grou"
    )
    assert caplog.text.count("images are not used") == 1
    assert message in caplog.text
    caplog.clear()
    names_in(category.parent)
    assert "images are not used from loose, only from weave" in caplog.text


@pytest.mark.parametrize(("on_disk", "named"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_a_category_is_found_however_its_accents_are_spelled(
    category: Path, on_disk: str, named: str
) -> None:
    root = category.rename(category.parent / on_disk)
    assert read_category(root.parent, named) == read_category(root.parent, on_disk)
    assert num_train(root.parent, named) == 2
    (root.parent / named / "train/good").mkdir(parents=True)
    refused("are called", read_category, root.parent, named)
    refused("are called", names_in, root.parent)


def test_a_folder_that_is_nearly_a_category_is_refused(category: Path) -> None:
    data_dir = category.parent
    copied(ONE, "../parts/Train/good/1.png")(category)
    refused("parts/Train is not called train", names_in, data_dir)
    refused("parts/Train is not called train", read_category, data_dir, "parts")
    refused("parts/Train is not called train", names_in, data_dir / "parts")
    assert num_train(data_dir, "weave") == 2
    copied(ONE, "../bare/1.png")(category)
    refused("bare/train/good holds no images (", read_category, data_dir, "bare")


def test_a_space_behind_a_categorys_name_is_shown(category: Path) -> None:
    category.rename(category.parent / "weave ")
    refused("it has 'weave '", read_category, category.parent, "weave")
    assert num_train(category.parent, "weave ") == 2


def test_a_linked_category_is_read_as_one(category: Path) -> None:
    (category.parent / "linked").symlink_to(category)
    assert names_in(category.parent) == ["linked", "weave"]
    assert num_train(category.parent, "linked") == 2


@pytest.mark.parametrize("name", ["..", "../weave", ".", "/", "weave/", " ", "weave\0", "WEAVE"])
def test_a_category_is_named_as_its_folder_is(category: Path, name: str) -> None:
    message = f"is not in data_dir {category.parent}: it has weave"
    refused(message, load_category, category.parent, name, 32)


def test_a_data_dir_is_a_folder_of_categories(category: Path) -> None:
    data_dir = category.parent
    (data_dir / "file").write_text("")
    refused("file is not a folder: set --config.data_dir", names_in, data_dir / "file")
    refused("absent is not a folder: set --config", names_in, data_dir / "absent")
    assert names_in(category) == ["weave"]
    assert read_category(category, "weave") == read_category(data_dir, "weave")
    assert names_in(category / "train" / "good") == ["good"]
    refused("holds no category: expected", names_in, category / "test")
    (data_dir / "screw").symlink_to("/no/such")
    refused(f"screw {NEITHER}", names_in, data_dir)


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


def test_files_without_permission_are_named(
    written: Path, caplog: pytest.LogCaptureFixture
) -> None:
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


def test_files_that_are_no_images_are_left_out(category: Path) -> None:
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
    assert names_in(category.parent) == ["weave"]


def test_content_decides_if_a_file_without_a_known_suffix_is_an_image(category: Path) -> None:
    for number, name in enumerate(("scan", "scan.001", "scan.png.part", "scan.gif", "scan.PNG ")):
        Image.fromarray(RAMP + np.uint8(number)).save(category / "train/good" / name, "PNG")
    split = load_category(category.parent, "weave", 32)
    names = "000.png", "001.png", "scan", "scan.001", "scan.PNG ", "scan.gif", "scan.png.part"
    assert split.train_names == names
    whole = (category / "train/good/scan").read_bytes()
    (category / "train/good/scan").write_bytes(whole[: len(whole) // 2])
    refused("train/good/scan (image file is tr", load_category, category.parent, "weave", 32)


def test_files_are_listed_without_being_opened(
    category: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    monkeypatch.setattr(folders, "open_image", opened.append)
    for name in ("a.txt", "b.csv", "c.json", "d.xml", "e.PNG", "f.jp2"):
        (category / "train/good" / name).write_text("")
    assert num_train(category.parent, "weave") == 4
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
    assert split.train_names == ("000.jpg", "000.png", "001.png")
    assert split.test_names[split.test_names.index("good/000.jpg") + 1] == "good/000.png"


def test_a_mask_too_small_for_the_image_size_is_said(
    category: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[20, 20] = 255
    Image.fromarray(mask).save(category / MASK)
    split = load_category(category.parent, "weave", 32)
    assert "1 of 4 masks are empty, or too small for 32x32 pixels. Their pixels" in caplog.text
    assert "count as normal: stain/000.png" in caplog.text
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
