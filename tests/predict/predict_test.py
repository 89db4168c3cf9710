"""The command, in this process."""

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from rd_jax.predict import __main__ as predict
from rd_jax.predict import outputs
from rd_jax.predict import predictor as predictor_module
from rd_jax.predict.predictor import Predictor, load_predictor, score_files
from rd_jax.report.heatmap import resized_map
from rd_jax.system.files import write_whole, writing
from tests.command import Done, captured
from tests.predict.outputs_test import read, read_tables
from tests.reference_weights import draw_images

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def run(tmp_path: Path, training: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch):
    """The command on a training that is loaded once, in a folder with images/."""

    def loaded(workdir: Path, teacher_weights: str | None = None, **rates: float) -> Predictor:
        is_loaded = workdir == training and not teacher_weights and not rates
        return predictor if is_loaded else load_predictor(workdir, teacher_weights, **rates)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict, "load_predictor", loaded)
    monkeypatch.setattr(predict, "require_devices", lambda: None)
    for name, image in zip(("a/1.png", "a/1.jpg", "b/1.png"), draw_images(3, 64), strict=True):
        path = Path("images", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[:48]).save(path)

    def command(*arguments: str, output: str = "out") -> Done:
        flags = "--workdir", str(training), "--output", output, "--batch_size=8"
        return captured(predict.main, [*flags, *arguments])

    return command


def many_images(num_images: int) -> None:
    image = Image.fromarray(draw_images(1, 40)[0])
    Path("many").mkdir()
    for i in range(num_images):
        image.save(f"many/{i:03}.png")


def test_a_folder_is_scored_and_shown(run, predictor: Predictor) -> None:
    done = run("images", "--maps=npy", "--masks")
    assert done.returncode == 0
    rows = read_tables(Path("out"))
    assert [row["file"] for row in rows] == ["images/a/1.jpg", "images/a/1.png", "images/b/1.png"]
    expected = list(score_files(predictor, [row["file"] for row in rows], 8))
    for row, result in zip(rows, expected, strict=True):
        assert row["score"] == pytest.approx(result.score, abs=1e-5)
        assert row["threshold"] == predictor.thresholds.image_threshold
        assert row["verdict"] == ("anomalous" if row["score"] > row["threshold"] else "normal")
        assert read(Path("out", row["heatmap"])).shape == (48, 64, 3)
        mask = read(Path("out", row["mask"]))
        assert mask.shape == (48, 64)
        assert mask.any() == (row["verdict"] == "anomalous")
        written = np.load(Path("out", row["map"]))
        np.testing.assert_allclose(written, result.anomaly_map, atol=1e-5)
    paths = [row[column] for row in rows for column in ("heatmap", "map", "mask")]
    assert len(set(paths)) == 9
    assert "3 of 3 images scored" in done.stdout


def test_by_fit_outputs_have_the_pictures_shape_and_its_verdict(
    run, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = predictor._replace(resize="fit")
    monkeypatch.setattr(predict, "load_predictor", lambda *_: fitted)
    assert run("images", "--maps=npy", "--masks", "--threshold=0.01").returncode == 0
    for row in read_tables(Path("out")):
        anomaly_map = np.load(Path("out", row["map"]))
        assert anomaly_map.shape == (24, 32)
        assert row["score"] == pytest.approx(anomaly_map.max(), abs=1e-6)
        mask = read(Path("out", row["mask"]))
        assert mask.shape == (48, 64)
        np.testing.assert_array_equal(mask > 0, resized_map(anomaly_map, (48, 64)) > 0.01)


def test_names_that_cannot_be_written_do_not_stop_the_rest(run) -> None:
    many_images(4)
    names = ["x" * 248 + ".png", "x" * 247 + "y.png", "000.PNG", os.fsdecode(b"\xff\n.png")]
    for i, name in enumerate(names):
        Path(f"many/00{i}.png").rename(Path("many", name))
    Path("many", os.fsdecode(b"broken\n\xff.png")).touch()
    output = os.fsdecode(b"out\xff")
    done = run("many", "--masks", "--maps=npy", output=output)
    assert done.returncode == 1
    assert "4 of 5 images scored" in done.stdout
    assert "3 could not be read or written" in done.stdout
    assert "failed: many/broken \\udcff.png: not an image in PNG, " in done.stderr
    rows = {row["file"].removeprefix("many/"): row for row in read_tables(Path(output))}
    for name in names[:2]:
        assert "File name too long" in rows[name]["error"]
        assert rows[name]["score"] == rows["000.PNG"]["score"]
    for name in names[2:]:
        assert all(Path(output, rows[name][kind]).is_file() for kind in outputs.KINDS)


def test_a_full_disk_stops_with_one_line(run, monkeypatch: pytest.MonkeyPatch) -> None:
    many_images(30)

    def full_in_the_end(path: Path, content: bytes) -> None:
        with writing(path):
            if path.name == "020_heatmap.png":
                raise OSError(28, "No space left on device")
        write_whole(path, content)

    monkeypatch.setattr(outputs, "write_whole", full_in_the_end)
    done = run("many")
    assert done.returncode == 2
    assert "error: cannot write out/heatmaps/020_heatmap.png: No space left" in done.stderr
    assert len(read_tables(Path("out"))) == 20


def test_broken_files_are_named_and_do_not_stop_the_rest(run) -> None:
    many_images(30)
    broken = ["many/000.png", "many/013.png", "many/029.png"]
    Path(broken[0]).write_bytes(b"")
    Path(broken[1]).write_bytes(Path("many/001.png").read_bytes()[:200])
    Path(broken[2]).write_text("no image")
    done = run("many")
    assert done.returncode == 1
    assert "27 of 30 images scored" in done.stdout
    assert "3 could not be read" in done.stdout
    named = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert [line.split(": ")[1] for line in named] == broken
    rows = read_tables(Path("out"))
    assert len(rows) == 30
    assert [row["file"] for row in rows if row["error"]] == broken
    assert all((row["score"] is None) == bool(row["error"]) for row in rows)
    assert len(list(Path("out/heatmaps").iterdir())) == 27


def test_all_that_looks_like_an_image_is_scored_or_named_with_the_reason(run) -> None:
    image = Image.fromarray(draw_images(1, 40)[0])
    Path("mixed").mkdir()
    read_as = {"1.gif": "GIF", "2.jfif": "JPEG", "3.ppm": "PPM", "4.jp2": "JPEG2000"}
    read_as |= {"5.avif": "AVIF", "6.heic": "PNG", "7": "PNG", "8.001": "JPEG"}
    for name, form in read_as.items():
        image.save(f"mixed/{name}", form)
    image.save("mixed/several.gif", save_all=True, append_images=[image.rotate(90)])
    Path("mixed/telephone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    for name in ("Thumbs.db", "README", "notes.txt", "list.csv", "list.json"):
        Path("mixed", name).write_text("no image")
    done = run("mixed")
    assert done.returncode == 1
    rows = {row["file"].removeprefix("mixed/"): row for row in read_tables(Path("out"))}
    errors = {name: row["error"] for name, row in rows.items() if row["error"]}
    assert list(errors) == ["several.gif", "telephone.heic"]
    assert "2 pictures in one file" in errors["several.gif"]
    assert "not an image in PNG" in errors["telephone.heic"]
    assert [name for name, row in rows.items() if row["score"] is not None] == list(read_as)
    assert rows["6.heic"]["score"] == rows["3.ppm"]["score"] == rows["7"]["score"]
    assert "8 of 10 images scored" in done.stdout


def test_without_a_hold_out_there_is_no_verdict_unless_a_threshold_is_given(
    run, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = dict(image_threshold=None, pixel_threshold=None, kept_rate=None, source="train")
    untested = predictor._replace(thresholds=predictor.thresholds._replace(**none))
    monkeypatch.setattr(predict, "load_predictor", lambda *_: untested)
    done = run("images")
    assert done.returncode == 0
    assert done.stderr.count("No thresholds, as no images were held out") == 1
    assert {(r["threshold"], r["verdict"]) for r in read_tables(Path("out"))} == {(None, None)}
    assert "anomalous" not in done.stdout
    done = run("images", "--threshold=0")
    assert "Threshold 0, chosen by you: its rate of false alarms is unknown" in done.stderr
    assert {(r["threshold"], r["verdict"]) for r in read_tables(Path("out"))} == {(0, "anomalous")}
    assert "3 of 3 images scored, 3 of them anomalous" in done.stdout

    done = run("images", "--masks", output="masked")
    assert done.returncode == 2
    assert "error: --masks needs a threshold for pixels" in done.stderr
    assert not Path("masked").exists()
    assert run("images", "--masks", "--threshold=0.1", output="masked").returncode == 0
    by_sums = untested._replace(scoring=untested.scoring.__class__(reduction="sum"))
    monkeypatch.setattr(predict, "load_predictor", lambda *_: by_sums)  # no sum is one of pixels
    assert run("images", "--masks", "--threshold=1", output="sums").returncode == 2


def test_a_second_run_does_not_take_outputs_for_inputs_and_leaves_none_behind(run) -> None:
    for maps in ("npy", "png16"):
        assert run("images", f"--maps={maps}", output="images/out").returncode == 0
        assert len(read_tables(Path("images/out"))) == 3
    Path("images/b/1.png").unlink()
    assert run("images", "--heatmap_format=jpg", output="images/out").returncode == 0
    left = sorted(str(path) for path in Path("images/out").rglob("[!.]*") if path.is_file())
    assert left == [
        "images/out/heatmaps/a/1.png_heatmap.jpg",
        "images/out/heatmaps/a/1_heatmap.jpg",
        *(f"images/out/{name}" for name in ("index.html", "predictions.csv", "predictions.jsonl")),
    ]


def test_a_second_command_into_one_folder_is_refused_before_it_writes(
    run, predictor: Predictor, training: Path
) -> None:
    flags = predict._parse(["images", "--workdir", str(training), "--output", "out"])
    outputs_of_first = predict._outputs(flags, predictor)
    first = predict.predict(predictor, {Path("images/a/1.png"): "1.png"}, outputs_of_first, 8)
    next(first)
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    done = run("images", "--maps=npy")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: --output out: another process writes predictions there; wait for it to end, or "
        "choose another folder"
    ]
    assert {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()} == before
    first.close()
    assert run("images").returncode == 0


@pytest.mark.parametrize("output", ["data/part", "data/part/test/out", "data/part/train/good"])
def test_outputs_that_would_be_taken_for_data_are_refused(run, output: str) -> None:
    Path("data/part/train/good").mkdir(parents=True)
    done = run("images", output=output)
    assert (done.returncode == 2) == (output != "data/part")
    assert ("would be taken for data" in done.stderr) == (output != "data/part")
    assert "would be taken for data" in run("images", output="data").stderr


def test_an_interruption_keeps_the_rows_of_all_batches_before(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    many_images(30)
    scored, calls = predictor_module.score_images, []

    def interrupted(*arguments: object) -> tuple:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scored(*arguments)

    monkeypatch.setattr(predictor_module, "score_images", interrupted)
    done = run("many")
    assert done.returncode == 130
    assert "interrupted: 16 of 30 images scored" in done.stderr
    rows = read_tables(Path("out"))
    assert [row["file"] for row in rows] == [f"many/{i:03}.png" for i in range(16)]
    assert all(Path("out", row["heatmap"]).is_file() for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images", "absent.png"], "absent.png does not exist"),
        (["images", "images/a/empty"], "images/a/empty holds no images"),
        ([], "give images, or a folder to --watch"),
        (["images", "--watch=images"], "give images, or a folder to --watch"),
        (["--watch=absent"], "--watch absent: there is no such folder"),
        (["--watch=out/masks"], "out/masks: there is no such folder"),
        (["images", "--workdir", "nowhere"], "no checkpoint in nowhere"),
        (["images", "--output", "images/a/1.png"], "cannot write images/a/1.png: Not a dir"),
        (["images", "--output", "/proc/out"], "cannot write /proc/out: "),
        (["images", "--batch_size=0"], "--batch_size=0: must be at least 1"),
        (["images", "--heatmaps=-1"], "--heatmaps=-1: must be at least 0"),
        (["images", "--false_positive_rate=-1"], "false_positive_rate=-1.0: must be "),
        (["images", "--threshold=nan"], "--threshold=nan: must be a finite number"),
        (["images", "--threshold=-inf"], "--threshold=-inf: must be a finite number"),
        (["images", "--maps=jpg"], "argument --maps: invalid choice: 'jpg'"),
        (["images", "--blur_sigma=2"], "unrecognized arguments: --blur_sigma=2"),
        (["images", "--teacher_weights=w.npz"], "w.npz is not a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_on_the_command_line_is_one_line(run, arguments: list[str], message: str) -> None:
    Path("images/a/empty").mkdir()
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not Path("out").exists()


def test_help_is_the_modules_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        predict._parse(["--help"])
    assert (predict.__doc__ or "").strip() in capsys.readouterr().out


def test_the_logger_has_the_packages_name_however_it_is_started() -> None:
    started = runpy.run_path(str(predict.__file__), run_name="other")
    assert started["logger"].name == "rd_jax.predict"  # of which INFO is shown


def test_the_module_is_a_command() -> None:
    command = [sys.executable, "-W", "error", "-m", "rd_jax.predict"]
    common = ["--workdir", "nowhere", "absent", "--output", "out"]
    done = subprocess.run([*command, *common], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: absent does not exist")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("count", "points"), [(20, True), (19, False)])
def test_many_anomalous_images_point_to_what_to_do_about_false_alarms(
    run, count: int, points: bool
) -> None:
    many_images(count)
    done = run("many", "--heatmaps=0", "--threshold=0")
    assert f"{count} of them anomalous" in done.stdout
    assert ("Too many false alarms" in done.stderr) == points
    assert "## Too many false alarms\n" in (ROOT / "docs" / "own_parts.md").read_text()


def test_a_watched_folder_is_scored_until_a_signal_ends_it_in_order(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = []

    def pause(_: float) -> None:
        pauses.append(len(read_watched()))
        if len(pauses) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    def read_watched() -> list[str]:
        return Path("out/predictions.jsonl").read_text().splitlines()

    monkeypatch.setattr(predict, "time", SimpleNamespace(sleep=pause))
    before = signal.getsignal(signal.SIGTERM)
    done = run("--watch", "images", "--batch_size=2")
    assert (done.returncode, signal.getsignal(signal.SIGTERM)) == (0, before)
    assert pauses == [0, 3, 3]
    assert "3 of 3 images scored" in done.stdout
    assert "images/b/1.png: " in done.stderr
    assert len(read_watched()) == 3
