import os
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rd_jax.predict import __main__ as predict
from rd_jax.predict import predictor
from rd_jax.predict.predictor import load_predictor, score_files
from rd_jax.report.heatmap import resized_map
from tests.predict.outputs_test import read, read_tables
from tests.reference_weights import draw_images
from tests.trained import save_training

ROOT = Path(__file__).parents[2]
_load_once = cache(load_predictor)  # and so compile once


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one category."""
    folder = tmp_path_factory.mktemp("run")
    save_training(folder / "weave")
    return folder


@pytest.fixture(scope="module")
def untested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that held no images out."""
    return save_training(tmp_path_factory.mktemp("untested"), holdout=False)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with images/, and without settings that outlive a test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict, "load_predictor", _load_once)
    monkeypatch.setattr(predict, "log_to_stderr", lambda: None)
    monkeypatch.setattr(predict, "keep_compiled_programs", lambda: None)
    for name, image in zip(("a/1.png", "a/1.jpg", "b/1.png"), draw_images(3, 64), strict=True):
        path = Path("images", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[:48]).save(path)


def many_images(num_images: int) -> None:
    image = Image.fromarray(draw_images(1, 40)[0])
    Path("many").mkdir()
    for i in range(num_images):
        image.save(f"many/{i:03}.png")


def test_a_folder_is_scored_and_shown(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--workdir", str(workdir), "images", "--output", "out", "--batch_size=8"]
    assert predict.main([*common, "--maps=npy", "--masks"]) == 0
    rows = read_tables(Path("out"))
    assert [row["file"] for row in rows] == ["images/a/1.jpg", "images/a/1.png", "images/b/1.png"]
    model, paths = _load_once(workdir / "weave", None), [Path(row["file"]) for row in rows]
    expected = list(score_files(model, paths, 8))
    for row, result in zip(rows, expected, strict=True):
        assert row["score"] == pytest.approx(result.score, abs=1e-5)
        assert row["threshold"] == model.calibration.image_threshold
        assert row["verdict"] == ("anomalous" if row["score"] > row["threshold"] else "normal")
        assert read(Path("out", row["heatmap"])).shape == (48, 64, 3)
        mask = read(Path("out", row["mask"]))
        assert mask.shape == (48, 64)
        assert mask.any() == (row["verdict"] == "anomalous")
        written = np.load(Path("out", row["map"]))
        np.testing.assert_allclose(written, result.anomaly_map, atol=1e-5)
    paths = [row[column] for row in rows for column in ("heatmap", "map", "mask")]
    assert len(set(paths)) == 9
    assert "3 of 3 images scored" in capsys.readouterr().out


def test_names_that_cannot_be_kept_do_not_stop_the_rest(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many_images(4)
    names = ["x" * 248 + ".png", "x" * 247 + "y.png", "000.PNG", os.fsdecode(b"\xff\n.png")]
    for i, name in enumerate(names):
        Path(f"many/00{i}.png").rename(Path("many", name))
    Path("many/000.png").write_bytes(Path("many", names[0]).read_bytes())
    Path("many", os.fsdecode(b"broken\n\xff.png")).touch()
    output = os.fsdecode(b"out\xff")
    common = ["--workdir", str(workdir), "many", "--output", output, "--masks", "--maps=npy"]
    assert predict.main(common) == 1
    printed = capsys.readouterr()
    assert "5 of 6 images scored" in printed.out
    assert "cannot read many/broken \\udcff.png: not an image in PNG, " in printed.err
    rows = [row for row in read_tables(Path(output)) if not row["error"]]
    paths = [row[column] for row in rows for column in ("heatmap", "map", "mask")]
    assert len({path.lower() for path in paths}) == 15
    assert all(Path(output, path).is_file() for path in paths)


def test_broken_files_are_named_and_do_not_stop_the_rest(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many_images(30)
    broken = ["many/000.png", "many/013.png", "many/029.png"]
    Path(broken[0]).write_bytes(b"")
    Path(broken[1]).write_bytes(Path("many/001.png").read_bytes()[:200])
    Path(broken[2]).write_text("no image")
    common = ["--workdir", str(workdir), "many", "--output", "out", "--batch_size=8"]
    assert predict.main(common) == 1
    output = capsys.readouterr()
    assert "27 of 30 images scored" in output.out
    assert "3 could not be read" in output.out
    named = [line for line in output.err.splitlines() if line.startswith("cannot read ")]
    assert [line.split(": ")[0].removeprefix("cannot read ") for line in named] == broken
    rows = read_tables(Path("out"))
    assert len(rows) == 30
    assert [row["file"] for row in rows if row["error"]] == broken
    assert all((row["score"] is None) == bool(row["error"]) for row in rows)
    assert len(list(Path("out/heatmaps").iterdir())) == 27


def test_all_that_looks_like_an_image_is_scored_or_named_with_the_reason(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image.fromarray(draw_images(1, 40)[0])
    Path("mixed").mkdir()
    read_as = {"1.gif": "GIF", "2.jfif": "JPEG", "3.ppm": "PPM", "4.jp2": "JPEG2000"}
    read_as |= {"5.avif": "AVIF", "6.heic": "PNG", "7": "PNG", "8.001": "JPEG"}
    for name, form in read_as.items():
        image.save(f"mixed/{name}", form)
    image.save("mixed/raw.dng", "TIFF")
    image.save("mixed/several.gif", save_all=True, append_images=[image.rotate(90)])
    Path("mixed/telephone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    for name in ("Thumbs.db", "README", "notes.txt", "list.csv", "list.json"):
        Path("mixed", name).write_text("no image")
    assert predict.main(["--workdir", str(workdir), "mixed", "--output", "out"]) == 1
    rows = {row["file"].removeprefix("mixed/"): row for row in read_tables(Path("out"))}
    unknown = "not an image in PNG, JPEG, JPEG 2000, BMP, TIFF, WebP, GIF, AVIF or PNM"
    assert {name: row["error"] for name, row in rows.items() if row["error"]} == {
        "raw.dng": f"{unknown}, but raw data of a camera",
        "several.gif": "2 pictures in one file: save the one that is meant",
        "telephone.heic": unknown,
    }
    assert [name for name, row in rows.items() if row["score"] is not None] == list(read_as)
    assert rows["6.heic"]["score"] == rows["3.ppm"]["score"] == rows["7"]["score"]
    output = capsys.readouterr()
    assert output.err.count("cannot read mixed/") == 3
    assert "8 of 11 images scored" in output.out
    assert "3 could not be read" in output.out


def test_without_a_hold_out_there_is_no_verdict_unless_a_threshold_is_given(
    untested: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO", "rd_jax.predict")
    common = ["--workdir", str(untested), "images", "--output", "out", "--batch_size=8"]
    assert predict.main(common) == 0
    assert caplog.text.count("No thresholds, as no images were held out") == 1
    assert {(r["threshold"], r["verdict"]) for r in read_tables(Path("out"))} == {(None, None)}
    assert "anomalous" not in capsys.readouterr().out
    caplog.clear()
    assert predict.main([*common, "--threshold=0"]) == 0
    assert "Threshold 0 of scores in float32, of which nothing is promised" in caplog.text
    assert {(r["threshold"], r["verdict"]) for r in read_tables(Path("out"))} == {(0, "anomalous")}
    assert "3 of 3 images scored, 3 of them anomalous" in capsys.readouterr().out


def test_a_second_run_does_not_take_outputs_for_inputs(workdir: Path) -> None:
    common = ["--workdir", str(workdir), "images", "--output", "images/out", "--batch_size=8"]
    for _ in range(2):
        assert predict.main(common) == 0
        assert len(read_tables(Path("images/out"))) == 3


def test_an_interruption_keeps_the_rows_of_all_batches_before(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    many_images(30)
    scored, calls = predictor.score_images, []

    def interrupted(*arguments: object) -> tuple:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scored(*arguments)

    monkeypatch.setattr(predictor, "score_images", interrupted)
    common = ["--workdir", str(workdir), "many", "--output", "out", "--batch_size=8"]
    assert predict.main(common) == 130
    assert "interrupted: 16 of 30 images scored" in capsys.readouterr().err
    rows = read_tables(Path("out"))
    assert [row["file"] for row in rows] == [f"many/{i:03}.png" for i in range(16)]
    assert all(Path("out", row["heatmap"]).is_file() for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images", "absent.png"], "absent.png does not exist"),
        (["images", "images/a/empty"], "images/a/empty holds no images"),
        ([], "the following arguments are required: images"),
        (["images", "--workdir", "nowhere"], "no checkpoint in nowhere"),
        (["images", "--output", "images/a/1.png"], "cannot write images/a/1.png: Not a dir"),
        (["images", "--output", "/proc/out"], "cannot write /proc/out: "),
        (["images", "--batch_size=0"], "argument --batch_size: invalid"),
        (["images", "--blur_sigma=-1"], "config.blur_sigma=-1.0: must be a number >= 0"),
        (["images", "--image_score=min"], "config.image_score='min': must be one of max, sum"),
        (["images", "--threshold=nan"], "argument --threshold: invalid"),
        (["images", "--maps=jpg"], "argument --maps: invalid choice: 'jpg'"),
        (["images", "--mask"], "unrecognized arguments: --mask"),
        (["images", "--teacher_weights=w.npz"], "teacher_weights w.npz is not a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_on_the_command_line_is_one_line(
    workdir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Path("images/a/empty").mkdir()
    code = predict.main(["--workdir", str(workdir), "--output", "out", *arguments])
    output = capsys.readouterr()
    assert code == 2
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert message in output.err
    assert not Path("out").exists()


def test_masks_need_a_threshold(untested: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--workdir", str(untested), "images", "--output", "out", "--masks"]
    for options in ([], ["--threshold=1", "--image_score=sum"]):  # no sum is one of pixels
        assert predict.main([*common, *options]) == 2
        assert capsys.readouterr().err.startswith("error: --masks needs a threshold for pixels")
        assert not Path("out").exists()
    assert predict.main([*common, "--threshold=0.1"]) == 0
    (row, *_) = read_tables(Path("out"))
    written = np.asarray(Image.open(Path("out", row["mask"])))
    model = _load_once(untested, None)
    (result,) = score_files(model, [row["file"]])
    expected = resized_map(result.anomaly_map, (48, 64)) > 0.1
    np.testing.assert_array_equal(written, 255 * expected)


def test_help_is_the_modules_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        predict.main(["--help"])
    assert predict.__doc__.strip() in capsys.readouterr().out


def test_what_is_told_is_the_packages_however_it_is_started() -> None:
    started = runpy.run_path(str(predict.__file__), run_name="other")
    assert started["logger"].name == "rd_jax.predict"  # of which INFO is shown


def test_the_module_is_a_command() -> None:
    command = [sys.executable, "-W", "error", "-m", "rd_jax.predict"]
    common = ["--workdir", "nowhere", "absent", "--output", "out"]
    done = subprocess.run([*command, *common], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: absent does not exist")
    assert done.stderr.count("\n") == 1
