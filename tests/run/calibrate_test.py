"""More good images set the thresholds, without training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rd_jax import calibrate, load_predictor, score_files
from rd_jax.data.synthetic import write_category
from rd_jax.method.thresholds import MARGIN
from rd_jax.store.rows import read_json
from tests.command import Done, assert_one_line, captured, evaluation, succeeded


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 8 good images that no training saw."""
    folder = tmp_path_factory.mktemp("more")
    write_category(folder, num_train=8, num_test=0, size=64, seed=7)
    return folder / "weave" / "train" / "good"


@pytest.fixture
def workdir(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "work") / "weave"


def calibrated(workdir: Path, *arguments: object) -> Done:
    return captured(calibrate.main, ["--workdir", str(workdir), *map(str, arguments)])


def scores_of(workdir: Path, folder: Path) -> list[float]:
    return [r.score for r in score_files(load_predictor(workdir), sorted(folder.iterdir()))]


def held_out_scores(workdir: Path) -> list[float]:
    return json.loads((workdir / "thresholds.json").read_text())["normal"]["scores"]


@pytest.mark.parametrize("replace", [False, True])
def test_the_threshold_is_that_of_all_good_images(workdir: Path, more: Path, replace: bool) -> None:
    scores = scores_of(workdir, more) + ([] if replace else held_out_scores(workdir))
    done = calibrated(workdir, more, *["--replace"] * replace)
    assert done.returncode == 0, done.stderr
    thresholds = load_predictor(workdir).thresholds
    assert thresholds.image_threshold == pytest.approx(max(scores) * (1 + MARGIN), rel=1e-6)
    assert (thresholds.num_images, thresholds.num_added) == (len(scores), 8)
    assert thresholds.kept_rate == pytest.approx(1 / (len(scores) + 1))
    row = read_json(workdir / "results.json")
    assert row["image_threshold"] == thresholds.image_threshold
    assert (row["num_held_out"], row["num_added"]) == (len(scores), 8)
    called = np.load(workdir / "evaluation.npz")
    recall = (called["scores"] > thresholds.image_threshold)[called["labels"]].mean()
    assert row["image_recall"] == pytest.approx(recall)
    summary = read_json(workdir.parent / "results.json")["categories"]
    assert summary[1]["image_threshold"] == thresholds.image_threshold
    page = (workdir.parent / "report.html").read_text()
    assert "8 added images" in page
    assert f"Colour begins at {thresholds.map_low:.3g} (" in page
    assert "The images that were added later are not shown." in page


def test_undo_goes_back_one_step_at_a_time(workdir: Path, more: Path) -> None:
    files = sorted(more.iterdir())
    states = [(workdir / "thresholds.json").read_bytes()]
    for part in (files[:4], files[4:]):
        assert calibrated(workdir, *part).returncode == 0
        states.append((workdir / "thresholds.json").read_bytes())
    assert load_predictor(workdir).thresholds.num_added == 8
    for state in (states[1], states[0]):
        assert calibrated(workdir, "--undo").returncode == 0
        assert (workdir / "thresholds.json").read_bytes() == state
    assert_one_line(calibrated(workdir, "--undo"), "nothing to undo")


def test_known_images_are_not_counted_again(
    workdir: Path, more: Path, data_dir: Path, tmp_path: Path
) -> None:
    for known in ("000.png", "011.png"):  # one was trained on or held out as well as the other
        copy = shutil.copy(data_dir / "weave/train/good" / known, tmp_path / f"other-{known}")
        before = (workdir / "thresholds.json").read_bytes()
        assert_one_line(calibrated(workdir, more, copy), "1 of 9 images were trained on")
        assert (workdir / "thresholds.json").read_bytes() == before
    shutil.copytree(more, tmp_path / "twice" / "a")
    shutil.copytree(more, tmp_path / "twice" / "b")
    done = calibrated(workdir, tmp_path / "twice")
    assert "8 of 16 images are copies" in done.stderr
    assert load_predictor(workdir).thresholds.num_added == 8
    assert_one_line(calibrated(workdir, more), "all these images were added before")


def test_other_rates_keep_what_was_added_and_another_score_does_not(
    workdir: Path, more: Path
) -> None:
    assert calibrated(workdir, more).returncode == 0
    assert load_predictor(workdir, false_positive_rate=0.2).thresholds.num_added == 8
    again = ("--config.category=weave", "--config.false_positive_rate=0.2")
    succeeded(*evaluation(workdir.parent, *again))
    assert load_predictor(workdir).thresholds.num_added == 8
    done = succeeded(*evaluation(workdir.parent, *again, "--config.blur_sigma=1"))
    assert "do not count any more" in done.stderr
    assert load_predictor(workdir).thresholds.num_added == 0
