"""The layouts of the field's data sets, and the tables that say the same.

What an image holds says what has to come out: its level is 10, 20 or 30 in training, validation or
test, and what is anomalous is brighter by 100, in a block. Masks and labels are counted from that.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rd_jax import __main__ as command
from rd_jax.data import Source, Split
from rd_jax.data.sources import find_categories
from tests.command import captured
from tests.data.refused import refused

TRAIN, VALIDATION, TEST = 10, 20, 30
SIDE = 16
LEFT, RIGHT = (slice(2, 6), slice(3, 8)), (slice(2, 6), slice(8, 14))  # they touch


def draw(path: Path, level: int, *blocks: tuple[slice, slice], number: int = 0) -> None:
    pixels = np.full((SIDE, SIDE, 3), level, np.uint8)
    pixels[0, 0] = number  # no image is a copy of another
    for block in blocks:
        pixels[block] += 100
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def mark(path: Path, block: tuple[slice, slice] | None, level: int = 255) -> None:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    if block:
        mask[block] = level
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def mvtec_ad(root: Path) -> None:
    for i in range(3):
        draw(root / f"cable/train/good/{i}.png", TRAIN, number=i)
    draw(root / "cable/test/good/0.png", TEST)
    draw(root / "cable/test/cut/0.png", TEST, LEFT)
    mark(root / "cable/ground_truth/cut/0_mask.png", LEFT)


def mvtec_loco(root: Path) -> None:
    for i in range(3):
        draw(root / f"juice/train/good/{i}.png", TRAIN, number=i)
        draw(root / f"juice/validation/good/{i}.png", VALIDATION, number=i)
    draw(root / "juice/test/good/000.png", TEST)
    draw(root / "juice/test/logical_anomalies/000.png", TEST, LEFT, RIGHT)
    draw(root / "juice/test/structural_anomalies/000.png", TEST, RIGHT)
    masks = root / "juice/ground_truth"
    mark(masks / "logical_anomalies/000/000.png", LEFT, 254)
    mark(masks / "logical_anomalies/000/001.png", RIGHT, 240)
    mark(masks / "structural_anomalies/000/000.png", RIGHT, 255)


def mvtec_ad_2(root: Path) -> None:
    for i in range(2):
        draw(root / f"can/train/good/{i}_regular.png", TRAIN, number=i)
        draw(root / f"can/validation/good/{i}_regular.png", VALIDATION, number=i)
        draw(root / f"can/test_private/{i}_regular.png", 0, number=i)
    draw(root / "can/test_public/good/000_overexposed.png", TEST)
    draw(root / "can/test_public/bad/000_regular.png", TEST, RIGHT)
    mark(root / "can/test_public/ground_truth/bad/000_regular_mask.png", RIGHT)


def btad(root: Path) -> None:
    for i in range(3):
        draw(root / f"01/train/ok/{i}.bmp", TRAIN, number=i)
    draw(root / "01/test/ok/0.bmp", TEST)
    draw(root / "01/test/ko/0.bmp", TEST, LEFT)
    mark(root / "01/ground_truth/ko/0.png", LEFT)


def in_capitals(root: Path) -> None:
    for i in range(2):
        draw(root / f"part/train/OK/{i}.png", TRAIN, number=i)
    draw(root / "part/test/Normal/0.png", TEST)
    draw(root / "part/test/scratch/0.png", TEST, LEFT)


def one_folder(root: Path) -> None:
    for i in range(3):
        draw(root / f"photos/{i}.png", TRAIN, number=i)


LAYOUTS = {
    "MVTec AD": (mvtec_ad, ""),
    "MVTec LOCO": (mvtec_loco, ""),
    "MVTec AD 2": (mvtec_ad_2, ""),
    "BTAD": (btad, ""),
    "names in capitals": (in_capitals, ""),
    "one folder": (one_folder, "photos"),
    "a category itself": (mvtec_ad, "cable"),
}
Layout = Callable[[Path], None]


def load(data_dir: Path, size: int = SIDE, chosen: str = "") -> Split:
    [category] = find_categories(Source(str(data_dir), "", (size, size), "stretch"), chosen)
    return category.load()


def check(split: Split) -> None:
    """Asserts that every image is where its level says, and masks and labels as its blocks say."""
    levels = split.train[:, -1, -1, 0]
    assert sorted(levels) == list(levels)  # those for validation are the last
    assert set(levels) <= {TRAIN, VALIDATION}
    assert split.num_validation == (levels == VALIDATION).sum()
    assert len(set(split.train_hashes)) == len(split.train)
    assert (split.test[:, -1, -1, 0] == TEST).all()
    anomalous = split.test[..., 0] > TEST + 50
    np.testing.assert_array_equal(split.labels, anomalous.any((1, 2)))
    assert [name.startswith("good/") for name in split.test_names] == list(~split.labels)
    if split.masks is not None:
        np.testing.assert_array_equal(split.masks, anomalous)


def assert_equal(one: Split, other: Split) -> None:
    for name, value in vars(one).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(other, name))
        else:
            assert getattr(other, name) == value, name
    assert one.train_sha256 == other.train_sha256


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_as_it_is_unpacked_and_as_the_table_that_lists_it(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, inner = LAYOUTS[name]
    layout(tmp_path / "data")
    split = load(tmp_path / "data" / inner)
    check(split)
    files = sum(1 for path in (tmp_path / "data").rglob("*") if path.is_file())
    unread = len([*(tmp_path / "data").rglob("test_private/*")])
    masks = len([*(tmp_path / "data").rglob("ground_truth/**/*.png")])
    assert len(split.train) + len(split.test) == files - masks - unread
    assert (split.masks is not None) == (masks > 0)

    monkeypatch.chdir(tmp_path)
    listed = captured(command.main, ["list", str(Path("data", inner))])
    assert listed.returncode == 0, listed.stderr
    header, *lines = listed.stdout.splitlines()
    table = tmp_path / "parts.csv"
    for order in (lines, lines[::-1]):  # which has no meaning
        table.write_text("\n".join([header, *order]))
        assert_equal(load(table), split)

    rows = list(csv.DictReader([header, *lines]))
    with (tmp_path / "parts.jsonl").open("w") as file:
        for row in rows:
            label = 0 if row["label"] == "good" else row["label"]
            print(json.dumps(row | {"label": label, "mask": row["mask"] or None}), file=file)
    assert_equal(load(tmp_path / "parts.jsonl"), split)


def test_masks_that_touch_are_united_before_they_are_resized(tmp_path: Path) -> None:
    """The seam at column 8 lies in the middle of what is a pixel at 5 x 5."""
    mvtec_loco(tmp_path)
    split = load(tmp_path, 32)
    assert split.masks is not None
    one_file = np.zeros((SIDE, SIDE), np.uint8)
    one_file[LEFT] = one_file[RIGHT] = 255
    expected = np.asarray(Image.fromarray(one_file).resize((32, 32), Image.Resampling.BILINEAR))
    which = split.test_names.index("logical_anomalies/000.png")
    np.testing.assert_array_equal(split.masks[which], expected > 127)


def test_a_file_of_a_united_mask_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    mvtec_loco(tmp_path)
    path = tmp_path / "juice/ground_truth/logical_anomalies/000/001.png"
    path.write_bytes(path.read_bytes()[:60])
    refused("000/000.png (with 001.png: ", load, tmp_path)


@pytest.mark.parametrize("place", ["split_csv", "."])
def test_the_table_of_visa_is_read_as_it_is_downloaded(tmp_path: Path, place: str) -> None:
    """Its masks hold the numbers of classes, and its paths begin at the folder above it."""
    lines = ["object,split,label,image,mask"]
    for name in ("candle", "pcb1"):
        images, masks = f"{name}/Data/Images", f"{name}/Data/Masks"
        for i in range(3):
            level = TRAIN if i < 2 else TEST
            draw(tmp_path / images / f"Normal/000{i}.JPG", level, number=level)
            split = "train" if i < 2 else "test"
            lines.append(f"{name},{split},normal,{images}/Normal/000{i}.JPG,")
        Image.fromarray(np.full((SIDE, SIDE, 3), TEST, np.uint8)).save(
            tmp_path / images / "Normal/0002.JPG", quality=100
        )
        draw(tmp_path / images / "Anomaly/000.png", TEST, LEFT, RIGHT)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[LEFT], mask[RIGHT] = 1, 3
        (tmp_path / masks / "Anomaly").mkdir(parents=True)
        Image.fromarray(mask).save(tmp_path / masks / "Anomaly/000.png")
        lines.append(f"{name},test,anomaly,{images}/Anomaly/000.png,{masks}/Anomaly/000.png")
    (tmp_path / place).mkdir(exist_ok=True)
    table = tmp_path / place / "1cls.csv"
    table.write_text("\n".join(lines))
    for name in ("candle", "pcb1"):
        split = load(table, chosen=name)
        assert split.name == name
        assert len(split.train) == 2
        assert list(split.labels) == [True, False]
        assert list(split.test_names) == ["anomaly/000.png", "good/0002.JPG"]
        assert split.masks is not None
        np.testing.assert_array_equal(split.masks[0], split.test[0, ..., 0] > TEST + 50)
        assert split.masks[0].sum() == 4 * 5 + 4 * 6
        assert not split.masks[1].any()
    refused("category 'fryum' is not in data_dir", load, table, SIDE, "fryum")


def test_tables_of_spreadsheets_and_of_parquet_are_read(tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    mvtec_ad(tmp_path)
    expected = load(tmp_path)
    rows = [
        {
            "label": "OK" if path.parent.name == "good" else path.parent.name,
            "image": str(path.relative_to(tmp_path)),
            "split": path.parts[-3],
            "mask": "cable/ground_truth/cut/0_mask.png" if path.parent.name == "cut" else "",
        }
        for path in tmp_path.glob("cable/t*/*/*.png")
    ]
    lines = [";".join(rows[0]), *(";".join(row.values()) for row in rows)]
    (tmp_path / "cable.csv").write_text("\r\n".join(lines), "utf-8-sig")
    parquet.write_table(Table.from_pylist(rows), tmp_path / "cable.parquet")
    for name in ("cable.csv", "cable.parquet"):
        assert_equal(load(tmp_path / name), expected)


def test_groups_are_those_of_the_training_images(tmp_path: Path) -> None:
    mvtec_ad(tmp_path)
    (tmp_path / "a.csv").write_text(
        "image,split,label,group\n"
        "cable/train/good/2.png,validation,good,c\n"
        "cable/train/good/1.png,train,good,b\n"
        "cable/train/good/0.png,train,good,\n"
    )
    split = load(tmp_path / "a.csv")
    assert (split.num_validation, split.groups) == (1, ("", "b", "c"))
    assert load(tmp_path).groups == ()
    text = (tmp_path / "a.csv").read_text().replace("validation", "train")
    (tmp_path / "a.csv").write_text(text)
    assert load(tmp_path / "a.csv").train_hashes == split.train_hashes
    assert load(tmp_path / "a.csv").train_sha256 != split.train_sha256


HEADER = "image,split,label,mask,category"
GOOD, CUT = "cable/train/good/0.png,train,good,,", "cable/test/cut/0.png,test,cut"
MASK = "cable/ground_truth/cut/0_mask.png"
WRONG = {
    "an image that is missing": ([GOOD, "x.png,train,good,,"], 3, "/x.png is not there"),
    "an image in another encoding": ([GOOD, "\udcfc.png,train,good,,"], 3, "is not there"),
    "a mask that is missing": ([GOOD, f"{CUT},x.png,"], 3, "/x.png is not there"),
    "another split": (
        [GOOD, "x.png,val,good,,"],
        3,
        "split 'val' is none of train, validation, test",
    ),
    "no label": ([GOOD, "x.png,test,,,"], 3, "it has no label"),
    "too few cells": ([GOOD, "x.png,test"], 3, "it has no label"),
    "a defect to train on": (
        [GOOD, CUT.replace("test,", "train,")],
        3,
        "only good images are in tr",
    ),
    "a defect to hold out": (
        [CUT.replace("test,", "validation,")],
        2,
        "only good images are in va",
    ),
    "a mask of a good image": ([GOOD.replace(",,", f",{MASK},")], 2, "a good image has a mask"),
    "the same image twice": ([GOOD, CUT, GOOD], 4, "0.png is in line 2, too"),
    "a mask that others have": (
        [GOOD, f"{CUT},{MASK},", "cable/test/good/0.png,test,bent,,"],
        4,
        "it has no mask, as others of parts have",
    ),
    "a category above its folder": ([GOOD + "../x"], 2, "category '../x' is no name of a folder"),
    "a hidden category": ([GOOD + ".locks"], 2, "category '.locks' is no name of a folder"),
    "a line break in a cell": ([GOOD, '"x\ny.png",train,good,,'], 4, "y.png is not there"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_in_a_table_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    mvtec_ad(tmp_path)
    lines, number, message = WRONG[name]
    table = tmp_path / "parts.csv"
    table.write_text("\n".join([HEADER, *lines]), "utf-8", "surrogateescape")
    line = refused(message, load, table)
    assert line.startswith(f"{table}, line {number}: ")


def test_a_mistake_of_a_whole_table_is_named(tmp_path: Path) -> None:
    mvtec_ad(tmp_path)
    table = tmp_path / "parts.csv"
    refused("parts.csv is not there: set --config.data_dir", load, table)
    table.write_text(HEADER)
    refused("parts.csv has no rows", load, table)
    table.write_text(f"{HEADER}\n{CUT},,")
    refused("category parts has no images whose split is train", load, table)
    table.write_text(f'{HEADER}\n{GOOD}\n"x.png,train')
    refused("parts.csv, line 3: ", load, table)
    table.with_suffix(".jsonl").write_text('{"image": "a.png"')
    refused("parts.jsonl, line 1: ", load, table.with_suffix(".jsonl"))
    table.with_suffix(".jsonl").write_text("7")
    refused("parts.jsonl, line 1: ", load, table.with_suffix(".jsonl"))


def test_columns_that_are_not_used_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mvtec_ad(tmp_path)
    (tmp_path / "a.csv").write_text(
        "masks,image,note,split,label\n,cable/train/good/0.png,x,train,good\n"
        ",cable/train/good/1.png,y,train,ok\n"
    )
    load(tmp_path / "a.csv")
    assert caplog.text.count("columns that are not used: masks, note") == 1


@pytest.mark.parametrize("name", ["good_2", "goods", "Okay", "ok-new", "normal 2"])
def test_a_kind_of_defect_that_is_called_nearly_as_normal_images_is_named(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    mvtec_ad(tmp_path)
    load(tmp_path)
    assert "counts as" not in caplog.text
    draw(tmp_path / f"cable/test/{name}/1.png", TEST, LEFT)
    mark(tmp_path / f"cable/ground_truth/{name}/1.png", LEFT)
    split = load(tmp_path)
    check(split)
    assert f"cable: {name} counts as a kind of defect, since normal images are" in caplog.text


def test_empty_masks_are_named_and_count_as_normal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mvtec_ad(tmp_path)
    draw(tmp_path / "cable/test/cut/1.png", TEST, RIGHT)
    mark(tmp_path / "cable/ground_truth/cut/1_mask.png", None)
    split = load(tmp_path)
    assert "1 of 2 masks are empty, or too small for 16x16 pixels" in caplog.text
    assert "count as normal: cut/1.png" in caplog.text
    assert split.masks is not None
    assert list(split.labels) == [True, True, False]
    assert list(split.masks.sum((1, 2))) == [4 * 5, 0, 0]
