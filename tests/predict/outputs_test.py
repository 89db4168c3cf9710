import csv
import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rd_jax.data.decode import read_image
from rd_jax.method.thresholds import with_threshold
from rd_jax.predict import outputs as outputs_module
from rd_jax.predict.outputs import COLUMNS, FIELDS, Outputs, check_output, regions, write_images
from rd_jax.predict.predictor import Prediction, Unreadable
from rd_jax.predict.tables import TABLES, begun, continued
from rd_jax.report.heatmap import overlay, resized_map
from rd_jax.system.errors import UserError
from rd_jax.system.files import writing
from tests.reference_weights import draw_images
from tests.trained import SIZE, THRESHOLDS


@pytest.fixture
def outputs(tmp_path: Path) -> Outputs:
    written = dict(heatmaps=10**6, heatmap_format="png", maps=None, fusion="sum", masks=False)
    return Outputs(tmp_path / "out", THRESHOLDS, **written)


@pytest.fixture
def prediction(tmp_path: Path) -> Prediction:
    path = tmp_path / "photo.jpg"
    Image.fromarray(draw_images(1, 90)[0][:50]).save(path)
    anomaly_map = np.random.default_rng(0).gamma(2, 0.2, (SIZE, SIZE)).astype(np.float32)
    return Prediction(path, float(anomaly_map.max()), True, anomaly_map, (50, 90))


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def read_tables(folder: Path) -> list[dict]:
    """The rows of predictions.jsonl, after comparison with those of predictions.csv."""
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    with open(folder / "predictions.csv", newline="", errors="surrogateescape") as file:
        table = list(csv.DictReader(file))
    for row, line in zip(rows, table, strict=True):
        assert tuple(line) == COLUMNS
        for name, text in line.items():
            if isinstance(row[name], float):
                assert float(text) == pytest.approx(row[name], rel=5e-4)
                assert len(text.replace(".", "").strip("0")) <= 4
            else:
                assert text == ("" if row[name] is None else str(row[name]))
    assert all(tuple(row) == FIELDS for row in rows)
    return rows


def test_heatmaps_are_left_out_or_smaller_or_jpeg(
    outputs: Outputs, prediction: Prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = read(outputs.folder / write_images(outputs, prediction, "full")["heatmap"])
    held = prediction._replace(image=np.asarray(read_image(prediction.path)))
    again = write_images(outputs, held, "held")["heatmap"]
    np.testing.assert_array_equal(read(outputs.folder / again), full)
    small = write_images(outputs._replace(heatmaps=45), prediction, "small")["heatmap"]
    assert read(outputs.folder / small).shape == (25, 45, 3)
    jpeg = write_images(outputs._replace(heatmap_format="jpg"), prediction, "jpeg")["heatmap"]
    assert jpeg == "heatmaps/jpeg_heatmap.jpg"
    assert np.abs(read(outputs.folder / jpeg).astype(int) - full).mean() < 20  # of noise
    monkeypatch.setattr(outputs_module, "read_image", None)  # nor is the image read
    row = write_images(outputs._replace(heatmaps=0), prediction, "none")
    assert row["heatmap"] is None
    assert row["score"] == prediction.score


def test_a_row_is_on_disk_when_it_was_appended(outputs: Outputs) -> None:
    empty = dict.fromkeys(FIELDS)
    names = ["a.png", 'comma, "quotes".png', "zwölf.png", os.fsdecode(b"\xff.png")]
    with begun(outputs, names) as tables:
        for i, name in enumerate(names):
            tables.append(empty | {"file": name, "score": i / 3})
            rows = read_tables(outputs.folder)
            assert [row["file"] for row in rows] == names[: i + 1]
            assert rows[i]["score"] == i / 3
    with begun(outputs, names):
        assert read_tables(outputs.folder) == []


def test_a_table_that_cannot_be_written_is_an_error(outputs: Outputs) -> None:
    (outputs.folder / "predictions.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write .*: Is a directory"), begun(outputs, []):
        pass


def test_two_processes_do_not_write_into_one_folder(outputs: Outputs) -> None:
    """Issue of two commands with one --output, whose rows ended up in one table."""
    row = dict.fromkeys(FIELDS) | {"file": "a.png"}
    with begun(outputs, []) as tables:
        tables.append(row)
        before = (outputs.folder / "predictions.csv").read_bytes()
        with pytest.raises(UserError, match="another process writes") as error, begun(outputs, []):
            pass
        assert "\n" not in str(error.value)
        assert (outputs.folder / "predictions.csv").read_bytes() == before
        tables.append(row)
    assert len(read_tables(outputs.folder)) == 2
    with begun(outputs, []):
        assert read_tables(outputs.folder) == []


def test_only_outputs_of_an_earlier_run_are_removed(
    outputs: Outputs, prediction: Prediction
) -> None:
    folder = outputs.folder
    outputs = outputs._replace(maps="png16", masks=True)
    with begun(outputs, ["x/a"]) as tables:
        tables.append(write_images(outputs, prediction, "x/a"))
    others = [folder / "heatmaps/x/mine.png", folder / "maps/notes.txt", folder / "mine.png"]
    of_a_killed_run, outside = folder / "masks/b_mask.png", folder.parent / "outside.png"
    for path in (*others, of_a_killed_run, outside):
        path.touch()
    lines = [
        {"heatmap": "../outside.png", "map": str(outside), "mask": "masks/../../outside.png"},
        {"heatmap": "mine.png", "map": 3, "mask": "masks"},
        {"heatmap": ".", "map": "", "mask": None},
        {"heatmap": "heatmaps/\0", "map": "maps/\ud800"},
        ["no row"],
    ]
    with (folder / "predictions.jsonl").open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines) + '{"half": ')
    with begun(outputs._replace(maps="npy"), ["b"]):
        pass
    left = [path for path in folder.rglob("*") if path.is_file()]
    own = [folder / name for name in (*TABLES, "index.html", ".predictions.lock")]
    assert {*left} == {*others, *own}
    assert outside.exists()


def test_a_path_that_a_spreadsheet_would_compute_stays_a_path(
    outputs: Outputs, prediction: Prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(prediction.path.parent)
    path = Path("=cmd|'C calc'!A0.jpg")
    prediction.path.rename(path)
    row = write_images(outputs, prediction._replace(path=path), path.name)
    with begun(outputs, []) as tables:
        tables.append(row)
    (row,) = read_tables(outputs.folder)
    assert row["file"] == f"./{path}"
    assert Path(row["file"]).is_file()
    for start in "=+-@\t\r":
        assert write_images(outputs, Unreadable(Path(f"{start}1"), ""), "1")["file"][0] == "."


def test_an_overlay_has_the_resolution_of_the_image(
    outputs: Outputs, prediction: Prediction
) -> None:
    row = write_images(outputs, prediction, "x/photo")
    assert row["heatmap"] == "heatmaps/x/photo_heatmap.png"
    written, image = read(outputs.folder / row["heatmap"]), read(prediction.path)
    assert written.shape == (50, 90, 3)
    scale = THRESHOLDS.map_low, THRESHOLDS.map_high
    expected = overlay(image, prediction.anomaly_map, *scale, is_anomalous=True)
    np.testing.assert_array_equal(written, expected)
    assert [path.name for path in outputs.folder.iterdir()] == ["heatmaps"]


def test_an_overlay_is_upright_where_the_camera_was_not(
    outputs: Outputs, prediction: Prediction
) -> None:
    with Image.open(prediction.path) as image:
        exif = image.getexif()
        exif[0x0112] = 6  # orientation: rotated by a quarter
        image.save(prediction.path, exif=exif)
    row = write_images(outputs, prediction, "photo")
    assert read(outputs.folder / row["heatmap"]).shape == (90, 50, 3)


def test_maps_give_their_values_back(outputs: Outputs, prediction: Prediction) -> None:
    row = write_images(outputs._replace(maps="npy"), prediction, "photo")
    assert row["map"] == "maps/photo_map.npy"
    written = np.load(outputs.folder / row["map"])
    assert written.dtype == np.float32
    np.testing.assert_array_equal(written, prediction.anomaly_map)
    outputs = outputs._replace(maps="png16")
    with begun(outputs, ["photo"]):
        row = write_images(outputs, prediction, "photo")
    assert row["map"] == "maps/photo_map.png"
    pixels = read(outputs.folder / row["map"])
    assert pixels.dtype == np.uint16
    scale = json.loads((outputs.folder / "maps" / "scale.json").read_text())["scale"]
    np.testing.assert_allclose(pixels * scale, prediction.anomaly_map, atol=6 / 65535)
    highest = prediction._replace(anomaly_map=np.full((2, 2), 8, np.float32))
    row = write_images(outputs._replace(fusion="product"), highest, "highest")
    assert (read(outputs.folder / row["map"]) == 65535).all()


@pytest.mark.parametrize("size", [(90, 50), (20, 300), (7, 9), (1, 1)])
@pytest.mark.parametrize("margin", [-1e-3, 0.0, 1e-3])
def test_mask_heatmap_and_verdict_are_one(
    outputs: Outputs, prediction: Prediction, size: tuple[int, int], margin: float
) -> None:
    """At any size, an anomalous image has a mask, regions and a contour, a normal one has none."""
    picture = Path(prediction.path.parent, "grey.png")
    Image.fromarray(np.full((size[1], size[0], 3), 128, np.uint8)).save(picture)
    threshold = prediction.score - margin
    thresholds = with_threshold(THRESHOLDS, threshold, is_maximum=True)
    pixel = 0.8 * threshold
    thresholds = thresholds._replace(pixel_threshold=pixel, map_low=pixel, map_high=2 * pixel)
    outputs = outputs._replace(thresholds=thresholds)
    result = prediction._replace(path=picture, is_anomalous=margin > 0, size=size[::-1])
    row = write_images(outputs._replace(masks=True), result, "photo")
    assert row["verdict"] == ("anomalous" if margin > 0 else "normal")
    mask, heatmap = read(outputs.folder / row["mask"]), read(outputs.folder / row["heatmap"])
    assert mask.shape == heatmap.shape[:2] == size[::-1]
    assert set(np.unique(mask)) <= {0, 255}
    is_contour = (heatmap == [255, 0, 200]).all(-1)
    is_calm = resized_map(prediction.anomaly_map, size[::-1]) <= pixel
    assert (heatmap[is_calm] == 128).all()
    assert sum(region["area"] for region in row["regions"]) == (mask == 255).sum()
    if margin > 0:
        row_of, column = np.unravel_index(prediction.anomaly_map.argmax(), (SIZE, SIZE))
        place = int((row_of + 0.5) * size[1] / SIZE), int((column + 0.5) * size[0] / SIZE)
        assert mask[place] == 255
        assert is_contour.any()
        assert (mask[is_contour] == 255).all()
        assert row["regions"][0]["highest"] == pytest.approx(prediction.score)
    else:
        assert not mask.any()
        assert not is_contour.any()


def test_a_mask_shows_the_pixels_above_their_threshold(
    outputs: Outputs, prediction: Prediction
) -> None:
    row = write_images(outputs._replace(masks=True), prediction, "photo")
    assert row["mask"] == "masks/photo_mask.png"
    written = read(outputs.folder / row["mask"])
    expected = resized_map(prediction.anomaly_map, (50, 90)) > THRESHOLDS.pixel_threshold
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(written, 255 * expected)


@pytest.mark.parametrize(
    ("is_anomalous", "verdict"), [(False, "normal"), (True, "anomalous"), (None, None)]
)
def test_a_row_has_score_threshold_and_verdict(
    outputs: Outputs, prediction: Prediction, is_anomalous: bool | None, verdict: str | None
) -> None:
    threshold = None if is_anomalous is None else 0.3
    thresholds = THRESHOLDS._replace(image_threshold=threshold)
    result = prediction._replace(score=0.5, is_anomalous=is_anomalous)
    row = write_images(outputs._replace(thresholds=thresholds), result, "photo")
    assert (row["score"], row["threshold"], row["verdict"]) == (0.5, threshold, verdict)
    assert row["error"] is None


def test_an_image_that_is_gone_by_now_is_one_that_cannot_be_read(
    outputs: Outputs, prediction: Prediction
) -> None:
    prediction.path.unlink()
    row = write_images(outputs, prediction, "photo")
    assert row["heatmap"] is None
    assert "No such file" in row["error"]
    unreadable = Unreadable(prediction.path, "not an image")
    row = write_images(outputs, unreadable, "photo")
    expected = {"file": str(prediction.path), "error": "not an image"}
    assert row == dict.fromkeys(FIELDS) | expected


def test_a_link_where_an_output_belongs_is_replaced_not_followed(
    outputs: Outputs, prediction: Prediction
) -> None:
    before = prediction.path.read_bytes()
    (outputs.folder / "heatmaps").mkdir(parents=True)
    os.symlink(prediction.path, outputs.folder / "heatmaps" / "photo_heatmap.png")
    with begun(outputs, ["photo"]):
        row = write_images(outputs, prediction, "photo")
    assert prediction.path.read_bytes() == before
    assert row["error"] is None
    assert not (outputs.folder / "heatmaps" / "photo_heatmap.png").is_symlink()


def test_a_link_where_a_table_belongs_is_replaced_not_followed(outputs: Outputs) -> None:
    outside = outputs.folder.parent / "table.csv"
    outside.write_text("of somebody else")
    outputs.folder.mkdir()
    for table in TABLES:
        os.symlink(outside, outputs.folder / table)
    with begun(outputs, []) as tables:
        tables.append(dict.fromkeys(FIELDS) | {"file": "a.png"})
    assert outside.read_text() == "of somebody else"
    assert len(read_tables(outputs.folder)) == 1


def test_a_folder_that_cannot_be_entered_may_lie_beside_the_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--output` at the root of a disk, which has `lost+found`."""
    (tmp_path / "lost+found").mkdir()
    stat = os.stat

    def denied(path, *args, **kwargs):
        if "lost+found/" in os.fspath(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return stat(path, *args, **kwargs)

    with monkeypatch.context() as patched:  # permissions do not hold for root
        patched.setattr(os, "stat", denied)
        check_output(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["x" * 248 + ".png", "ü" * 125 + ".png", "deep/" * 900 + "1.png", os.fsdecode(b"\xff" * 255)],
    ids=lambda name: name[:6],
)
def test_a_name_that_the_file_system_does_not_take_is_the_rows_error(
    outputs: Outputs, prediction: Prediction, name: str
) -> None:
    row = write_images(outputs._replace(maps="npy", masks=True), prediction, name)
    assert (row["heatmap"], row["map"], row["mask"]) == (None, None, None)
    assert "File name too long" in row["error"]
    assert row["score"] == prediction.score
    assert row["verdict"] == "anomalous"


def test_other_errors_of_a_name_are_the_rows_error(
    outputs: Outputs, prediction: Prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    (outputs.folder / "heatmaps/folder_heatmap.png").mkdir(parents=True)
    (outputs.folder / "heatmaps/file").touch()
    for name in ("folder", "file/1.png"):
        assert "error" in write_images(outputs, prediction, name)
        assert write_images(outputs, prediction, name)["heatmap"] is None
    with monkeypatch.context() as patch:

        def on_vfat(path: Path, _: bytes) -> None:
            with writing(path):
                raise OSError(errno.EINVAL, "Invalid argument")

        patch.setattr(outputs_module, "write_whole", on_vfat)
        row = write_images(outputs, prediction, "10:30?")
    assert row["error"].endswith("10:30?_heatmap.png: Invalid argument")


def test_the_second_of_two_equal_names_on_disk_is_an_error(
    outputs: Outputs, prediction: Prediction
) -> None:
    first = write_images(outputs, prediction, "a/1.png")
    before = (outputs.folder / first["heatmap"]).read_bytes()
    other = prediction._replace(anomaly_map=prediction.anomaly_map / 2)
    second = write_images(outputs, other, "a/../a/1.png")
    assert second["heatmap"] is None
    assert "another image" in second["error"]
    assert (outputs.folder / first["heatmap"]).read_bytes() == before


def test_regions_are_those_that_one_walks_through_from_pixel_to_pixel(
    prediction: Prediction,
) -> None:
    """By a walk over all eight neighbours; boxes and areas are those of the picture's pixels."""
    size, threshold = (47, 80), 0.9
    result = prediction._replace(size=size)
    values = resized_map(prediction.anomaly_map, size)
    left, expected = {*map(tuple, np.argwhere(values > threshold).tolist())}, []
    while left:
        region, border = [], [left.pop()]
        while border:
            row, column = border.pop()
            region.append((row, column))
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            border += near
        (top, start), (bottom, end) = np.min(region, 0), np.max(region, 0)
        box = [int(x) for x in (start, top, end - start + 1, bottom - top + 1)]
        highest = max(float(values[place]) for place in region)
        expected.append({"box": box, "area": len(region), "highest": highest})
    assert len(expected) > 5
    by_height = sorted(expected, key=lambda region: -region["highest"])
    assert regions(result, threshold) == by_height
    assert json.loads(json.dumps(by_height)) == by_height
    assert regions(result._replace(is_anomalous=False), threshold) == []
    assert regions(result, None) is None


def test_tables_go_on_after_whole_rows_alone(outputs: Outputs) -> None:
    rows = [dict.fromkeys(FIELDS) | {"file": name, "score": 1 / 3} for name in ("a", "b", "c")]
    with begun(outputs, []) as tables:
        tables.append(rows[0])
    for name in TABLES:  # a power cut while a row was written
        with (outputs.folder / name).open("ab") as file:
            file.write(b'{"file": "half')
    with continued(outputs) as (tables, before):
        assert before == rows[:1]
        tables.append(rows[1])
        tables.append(rows[2])
    assert read_tables(outputs.folder) == rows


@pytest.fixture
def limit_files_to() -> Iterator[Callable[[int], None]]:
    """Lets no file grow beyond so many bytes: what a full disk is like."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_whole_rows(
    outputs: Outputs, limit_files_to: Callable[[int], None]
) -> None:
    row = dict.fromkeys(FIELDS) | {"file": "x" * 100}
    problem = pytest.raises(UserError, match=r"cannot write .*predictions.jsonl: File too large")
    with problem, begun(outputs, []) as tables:
        tables.append(row)
        limit_files_to(300)
        tables.append(row)
    lines = (outputs.folder / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [row]
    assert (outputs.folder / "predictions.csv").read_text().count("\n") == 3


def test_a_full_disk_leaves_no_half_image(
    outputs: Outputs, prediction: Prediction, limit_files_to: Callable[[int], None]
) -> None:
    limit_files_to(1000)
    with pytest.raises(UserError, match=r"cannot write .*photo_heatmap.png: File too large"):
        write_images(outputs, prediction, "photo")
    assert list((outputs.folder / "heatmaps").iterdir()) == []
