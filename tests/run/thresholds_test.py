"""Thresholds of a run: from all held-out images, in each arithmetic, with any rate, blur, score."""

import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import rd_jax
from rd_jax.config import get_config
from rd_jax.data.decode import decode_image
from rd_jax.data.order import holdout_indices
from rd_jax.data.synthetic import write_category
from rd_jax.method.models import Model
from rd_jax.run import evaluation
from rd_jax.run.thresholds import calibration_of
from rd_jax.store.checkpoint import checksum
from rd_jax.store.distances import NormalDistances, read_distances
from tests.command import SMALL, assert_one_line, run
from tests.trained import draw_distances

NUM_IMAGES, NUM_HELD_OUT = 12, 6


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_category(folder, num_train=NUM_IMAGES, num_test=2, size=32)
    return folder


def arguments(data_dir: Path, workdir: Path, *more: str) -> tuple[str, ...]:
    config = ("--config", "mvtec:weave", f"--config.data_dir={data_dir}")
    return (*config, "--workdir", str(workdir), *SMALL, "--config.holdout=0.5", *more)


@pytest.fixture(scope="module")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run") / "a[b]*"  # a name like a pattern is one like others
    flags = ("--config.dtype=bfloat16", "--config.checkpoint_every_epochs=1")
    flags += ("--config.keep_optimizer=True",)
    done = run(*arguments(data_dir, workdir, *flags))
    assert done.returncode == 0, done.stderr
    assert f"scoring {NUM_HELD_OUT} normal images in float32" in done.stderr
    assert "14.3% of new normal images are expected above it, the least that" in done.stderr
    assert "6 held-out images can promise (1% needs 99)" in done.stderr
    return workdir


def results(workdir: Path) -> dict:
    return json.loads((workdir / "weave" / "results.json").read_text())


def held_out_scores(
    data_dir: Path, workdir: Path, dtype: type, sigma: float, reduction: str
) -> np.ndarray:
    """By the library's own scorer, not by what was kept."""
    _, held_out = holdout_indices(0, 0.5, NUM_IMAGES)
    paths = sorted((data_dir / "weave" / "train" / "good").iterdir())
    images = np.stack([decode_image(paths[i], 32)[0] for i in held_out])
    _, student, _ = rd_jax.restore(workdir, "weave")
    scorer = rd_jax.make_scorer(Model("tiny", dtype=dtype), sigma, reduction)
    return np.sort(scorer(rd_jax.load_teacher("tiny", "random"), student, images)[1])


def test_each_arithmetic_is_scored_once_and_kept(data_dir: Path, trained: Path) -> None:
    row = results(trained)
    (own,) = held_out_scores(data_dir, trained, jax.numpy.bfloat16, 4, "max")[-1:]
    assert row["image_threshold"] == pytest.approx(own, rel=1e-4)  # BatchNorm folded or not
    assert row["dtype"] == "bfloat16"
    assert row["num_held_out"] == NUM_HELD_OUT
    assert row["kept_false_positive_rate"] == 1 / 7
    _, _, known = rd_jax.restore(trained, "weave")
    (exact,) = held_out_scores(data_dir, trained, jax.numpy.float32, 4, "max")[-1:]
    assert known["calibration"]["image_threshold"] == pytest.approx(exact, rel=1e-5)
    assert exact != own
    assert rd_jax.load_predictor(trained).calibration.dtype == "bfloat16"


def test_another_rate_blur_and_score_need_no_training(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "copy")
    changes = {"false_positive_rate": 0.5, "blur_sigma": 1.0, "image_score": "sum"}
    flags = [f"--config.{name}={value}" for name, value in changes.items()]
    evaluation = ("--mode", "eval", "--config", "mvtec", "--config.dtype=float32")
    done = run(*evaluation, "--workdir", str(workdir), *flags)
    assert done.returncode == 0, done.stderr
    assert "normal images in" not in done.stderr  # they were scored before
    scores = held_out_scores(data_dir, workdir, jax.numpy.float32, 1, "sum")
    row = results(workdir)
    assert row["image_threshold"] == pytest.approx(scores[-3], rel=1e-5)  # half of 7, rounded down
    assert row["kept_false_positive_rate"] == 3 / 7
    assert {name: row[name] for name in changes} == changes
    _, _, known = rd_jax.restore(workdir, "weave")  # as it was trained
    assert known["calibration"]["false_positive_rate"] == 0.01


def test_what_was_not_kept_is_scored_again(trained: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(trained, tmp_path / "copy")
    expected, path = results(workdir), workdir / "weave" / "distances.npz"
    for content in (None, path.read_bytes()[:1000]):
        path.unlink()
        if content:
            path.write_bytes(content)
        done = run("--mode", "eval", "--config", "mvtec", "--workdir", str(workdir))
        assert done.returncode == 0, done.stderr
        assert results(workdir) | {"eval_seconds": 0} == expected | {"eval_seconds": 0}
    done = run("--mode", "eval", "--config", "mvtec", "--workdir", str(workdir))
    assert "evaluated already" in done.stderr


def test_other_training_images_set_no_threshold(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    workdir, others = shutil.copytree(trained, tmp_path / "copy"), tmp_path / "others"
    shutil.copytree(data_dir, others)
    next((others / "weave" / "train" / "good").iterdir()).unlink()
    flags = ("--mode", "eval", "--config", "mvtec", f"--config.data_dir={others}")
    done = run(*flags, "--workdir", str(workdir), "--config.false_positive_rate=0.5")
    assert done.returncode == 0, done.stderr
    assert results(workdir)["kept_false_positive_rate"] == 3 / 7  # the kept ones still do
    (workdir / "weave" / "distances.npz").unlink()
    done = run(*flags, "--workdir", str(workdir))
    assert done.returncode == 0, done.stderr
    assert (
        "no thresholds, since the training images, or their size, are others than in" in done.stderr
    )
    assert results(workdir)["image_threshold"] is None


def test_going_on_in_another_dtype_is_an_error_and_evaluating_is_not(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "copy")
    done = run(*arguments(data_dir, workdir, "--config.dtype=auto"))
    assert done.returncode == 0, done.stderr
    row = results(workdir)
    assert row["dtype"] == "float32"
    (exact,) = held_out_scores(data_dir, workdir, jax.numpy.float32, 4, "max")[-1:]
    assert row["image_threshold"] == pytest.approx(exact, rel=1e-5)

    shutil.rmtree(workdir / "weave" / "checkpoints" / "3")
    done = run(*arguments(data_dir, workdir, "--config.dtype=auto"))
    assert_one_line(done, "another config: dtype ('bfloat16', now 'auto', on cpu 'float32')")


def test_hold_outs_of_any_size_are_used_whole() -> None:
    config = get_config(image_size=32, false_positive_rate=0.05)
    distances = draw_distances(0, 2345)
    calibration = calibration_of(
        config, NormalDistances(True, 0, {"float32": distances}), "float32"
    )
    assert calibration.num_images == 2345
    above = math.floor(0.05 * 2346) - 1
    assert calibration.kept_rate == (above + 1) / 2346
    each = NormalDistances(True, 0, {"float32": tuple(d[:1] for d in distances)})
    one = calibration_of(config, each, "float32").image_threshold
    assert one < calibration.image_threshold


def test_distances_are_float32_at_each_scale(trained: Path) -> None:
    _, student, _ = rd_jax.restore(trained, "weave")
    kept = read_distances(trained / "weave" / "distances.npz", checksum(student))
    assert kept is not None
    assert kept.is_holdout
    assert kept.by_dtype.keys() == {"float32", "bfloat16"}
    for of_scales in kept.by_dtype.values():
        assert [(d.shape, d.dtype.name) for d in of_scales] == [
            ((NUM_HELD_OUT, size, size), "float32") for size in (8, 4, 2)
        ]


def test_a_kill_while_the_test_set_is_scored_leaves_no_older_results(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "copy")
    expected = results(workdir)
    (workdir / "weave" / "distances.npz").unlink()
    evaluate = ("--mode", "eval", "--config", "mvtec", "--workdir", str(workdir))
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "score_split", lambda *_: (_ for _ in ()).throw(KeyError))
        with pytest.raises(KeyError):
            run(*evaluate)
    assert not (workdir / "weave" / "results.json").exists()
    assert run(*evaluate).returncode == 0
    assert results(workdir)["image_threshold"] == expected["image_threshold"]


def test_an_unfinished_training_has_no_thresholds(trained: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(trained, tmp_path / "copy")
    shutil.rmtree(workdir / "weave" / "checkpoints" / "3")
    assert run("--mode", "eval", "--config", "mvtec", "--workdir", str(workdir)).returncode == 0
    assert results(workdir)["num_steps"] == 2
    assert results(workdir)["image_threshold"] is None
