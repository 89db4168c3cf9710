"""One training for several categories: one student, and what is each category's own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import rd_jax
from rd_jax.config import get_config
from rd_jax.data import Joined, Split
from rd_jax.data.mvtec import load_category
from rd_jax.data.order import holdout_indices
from rd_jax.data.splits import check_splits, named
from rd_jax.data.synthetic import write_category
from rd_jax.method.metrics import METRICS, metrics_of
from rd_jax.method.models import Model
from rd_jax.predict import __main__ as predict
from rd_jax.run.trained import find_training
from rd_jax.store import checkpoint
from rd_jax.store.rows import read_rows
from rd_jax.store.workdir import find_trainings
from rd_jax.system.errors import UserError
from tests.command import SMALL, Done, assert_one_line, captured, run
from tests.run.resume_test import trained_leaves

NUM_IMAGES = {"felt": 6, "twill": 10}  # of which half are held out
JOINT = "all-categories"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, (name, count) in enumerate(NUM_IMAGES.items()):
        write_category(folder, num_train=count, num_test=2, size=32, seed=seed)
        (folder / "weave").rename(folder / name)
    return folder


def train(data_dir: Path, workdir: Path, *more: str, joint: bool = True) -> Done:
    common = ("--config", "mvtec", f"--config.data_dir={data_dir}", "--workdir", str(workdir))
    flags = (f"--config.joint={joint}", "--config.holdout=0.5", "--config.keep_optimizer=True")
    return run(*common, *SMALL, *flags, *more)


def evaluate(workdir: Path, *more: str) -> Done:
    return run("--mode", "eval", "--config", "mvtec", "--workdir", str(workdir), *more)


@pytest.fixture(scope="module")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "work"
    flags = ("--config.checkpoint_every_epochs=1", "--config.eval_every_epochs=1")
    done = train(data_dir, workdir, *flags)
    assert done.returncode == 0, done.stderr
    assert f"{JOINT}: 16 images, steps 0 to 4" in done.stderr
    assert "One student for all categories, trained on them together." in done.stdout
    assert [f"\n| {name} | " in done.stdout for name in (*NUM_IMAGES, "mean", JOINT)] == [
        1,
        1,
        1,
        0,
    ]
    return workdir


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def scored(student: object, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By the library's own scorer."""
    scorer = rd_jax.make_scorer(Model("tiny", dtype=np.float32))
    maps, scores = scorer(rd_jax.load_teacher("tiny", "random"), student, images)
    return np.asarray(maps), np.asarray(scores)


def held_out(split: Split) -> np.ndarray:
    return split.train[holdout_indices(0, 0.5, len(split.train))[1]]


@pytest.fixture(scope="module")
def splits(data_dir: Path) -> list[Split]:
    return [load_category(data_dir, name, 32) for name in NUM_IMAGES]


def test_each_category_is_evaluated_with_the_one_student(
    trained: Path, splits: list[Split]
) -> None:
    (folder,) = trained.rglob("checkpoints")
    assert folder == trained / JOINT / "checkpoints"
    assert checkpoint.steps(folder) == [4, 2]
    for part in find_trainings(trained):  # what the page shows of each
        assert (part.checkpoints, part.metrics) == (folder, trained / JOINT / "metrics.jsonl")
    rows = {step: [] for step in (2, 4)}
    for step, split in [(step, split) for step in (2, 4) for split in splits]:
        maps, scores = scored(checkpoint.load(folder, step).student_variables, split.test)
        rows[step].append(metrics_of(maps, scores, split.labels, split.masks))
    for split, expected in zip(splits, rows[4], strict=True):
        row = results(trained / split.name)
        assert {name: row[name] for name in METRICS} == pytest.approx(expected, abs=1e-5)
        assert row["joint"]
    (mean,) = (row for row in read_rows(trained / JOINT / "metrics.jsonl") if "aupro" in row)
    assert mean["step"] == 2
    expected = {name: np.mean([row[name] for row in rows[2]]) for name in METRICS}
    assert {name: mean[name] for name in METRICS} == pytest.approx(expected, abs=1e-5)


def test_the_student_is_that_of_a_category_with_the_images_of_all_but_those_held_out(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(data_dir / "felt" / "test", tmp_path / "data" / "both" / "test")
    (tmp_path / "data" / "both" / "train" / "good").mkdir(parents=True)
    for name, count in NUM_IMAGES.items():
        paths = sorted((data_dir / name / "train" / "good").iterdir())
        for i in holdout_indices(0, 0.5, count)[0]:
            shutil.copy(
                paths[i], tmp_path / "data" / "both" / "train" / "good" / f"{name}_{i:03}.png"
            )
    done = train(tmp_path / "data", tmp_path / "work", "--config.holdout=0", joint=False)
    assert done.returncode == 0, done.stderr
    for a, b in zip(
        trained_leaves(trained / JOINT), trained_leaves(tmp_path / "work" / "both"), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_each_category_has_its_threshold_and_the_run_has_one_for_all(
    trained: Path, splits: list[Split], data_dir: Path, tmp_path: Path
) -> None:
    _, student, known = rd_jax.restore(trained, JOINT)
    of_each = [scored(student, held_out(split))[1] for split in splits]
    for split, scores in zip(splits, of_each, strict=True):
        assert results(trained / split.name)["num_held_out"] == len(scores)
        _, _, own = rd_jax.restore(trained, split.name)
        assert own["calibration"]["image_threshold"] == pytest.approx(scores.max(), rel=1e-5)
    assert known["calibration"]["num_images"] == 8
    for folder in (trained, trained / JOINT):
        calibration = rd_jax.load_predictor(folder, false_positive_rate=0.5).calibration
        pooled = np.sort(np.concatenate(of_each))
        assert calibration.image_threshold == pytest.approx(pooled[-4], rel=1e-5)
        assert calibration.kept_rate == 4 / 9
    images = str(data_dir / "felt" / "test" / "good")
    for folder, says, threshold in (
        (trained, ", one threshold for all of felt, twill: 11.1% of", pooled.max()),
        (trained / "felt", ", that of felt: 25% of", of_each[0].max()),
    ):
        output = tmp_path / folder.name
        done = captured(predict.main, ["--workdir", str(folder), images, "--output", str(output)])
        assert done.returncode == 0, done.stderr
        assert says in done.stderr
        for line in (output / "predictions.jsonl").read_text().splitlines():
            assert json.loads(line)["threshold"] == pytest.approx(threshold, rel=1e-5)


def test_an_interrupted_training_goes_on_bit_identically(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "work")
    shutil.rmtree(workdir / JOINT / "checkpoints" / "4")
    for name in NUM_IMAGES:
        shutil.rmtree(workdir / name)
    assert train(data_dir, workdir).returncode == 0
    for a, b in zip(trained_leaves(trained / JOINT), trained_leaves(workdir / JOINT), strict=True):
        np.testing.assert_array_equal(a, b)
    of_time = dict.fromkeys(("train_seconds", "eval_seconds", "images_per_second"))
    for name in NUM_IMAGES:
        assert results(workdir / name) | of_time == results(trained / name) | of_time


def test_what_was_killed_before_its_evaluation_is_evaluated(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / JOINT, tmp_path / "work" / JOINT)
    with pytest.raises(
        UserError, match=r"work/felt has no scores of normal images, .* --mode eval"
    ):
        rd_jax.load_predictor(tmp_path / "work")
    own = f"--config.data_dir={data_dir}"
    done = evaluate(tmp_path / "work", own, "--config.category=twill")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "work" / "felt").exists()
    assert rd_jax.load_predictor(tmp_path / "work" / "twill").calibration.num_images == 5
    done = evaluate(tmp_path / "work", own, "--config.category=twill,felt")
    assert done.returncode == 0, done.stderr
    assert "twill: evaluated already" in done.stderr
    assert (tmp_path / "work" / "results.md").read_text() == (trained / "results.md").read_text()
    done = evaluate(tmp_path / "work", own, "--config.category=felt,screw")
    assert_one_line(done, "no checkpoint of screw in ")


def test_a_joint_training_and_others_do_not_mix(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    done = train(data_dir, trained, joint=False)
    assert_one_line(done, f"{JOINT} holds one training for all categories: set --config.joint=True")
    done = train(data_dir, trained, "--config.category=felt")
    assert_one_line(done, "was trained with the categories felt, twill, not with felt; choose ano")
    others = shutil.copytree(data_dir, tmp_path / "data")
    next((others / "twill" / "train" / "good").iterdir()).unlink()
    done = train(others, trained)
    assert_one_line(done, "was trained with other training images of twill than are there now; ch")
    with pytest.raises(UserError, match="was trained on felt, twill, not on screw"):
        rd_jax.load_predictor(trained / "screw")

    workdir = tmp_path / "work"
    (workdir / "felt" / "checkpoints").mkdir(parents=True)
    assert_one_line(train(data_dir, workdir), "felt is of a training of this category alone: choo")
    done = train(data_dir, workdir, "--config.category=twill", "--restart")
    assert_one_line(done, "felt is of a training of this category alone: choo")
    joint = ("--config.joint=True",)
    done = run("--config", "one_class", *joint, "--workdir", str(workdir))
    assert_one_line(done, "config.joint=True: must be False with config.dataset")
    done = evaluate(workdir, "--config.rd4ad_checkpoint=x", "--config.category=a", *joint)
    assert_one_line(done, "config.joint=True: rd4ad_checkpoint is of one category")


def test_seeds_of_a_joint_training_and_starting_anew(data_dir: Path, tmp_path: Path) -> None:
    seeds = ("--config.seeds=0,1", "--config.num_epochs=1")
    assert train(data_dir, tmp_path, *seeds).returncode == 0
    assert {path.parent for path in tmp_path.rglob("checkpoints")} == {
        tmp_path / JOINT / f"seed_{seed}" for seed in (0, 1)
    }
    assert results(tmp_path / "felt")["seeds"] == [0, 1]
    one = find_training(tmp_path / "felt" / "seed_1")
    assert one.checkpoints == tmp_path / JOINT / "seed_1" / "checkpoints"
    assert rd_jax.restore(tmp_path, "felt/seed_1")[2]["calibration"]["num_images"] == 3
    with pytest.raises(UserError, match="several trainings: add one of seed_0, seed_1 to --workd"):
        find_training(tmp_path / "felt")
    more = ("--config.category=twill", "--config.num_epochs=1", "--restart")
    done = train(data_dir, tmp_path, *more, joint=False)
    assert done.returncode == 0, done.stderr
    moved = {path.name for path in tmp_path.glob("replaced-*/*")}
    assert moved == {"felt", "twill", JOINT}
    assert "| felt |" not in done.stdout
    assert find_training(tmp_path).folder == tmp_path / "twill"


def test_categories_are_named_between_commas(data_dir: Path, tmp_path: Path) -> None:
    assert named("a, b,a,", ["a", "b"]) == ["a", "b"]
    assert named("a,b", ["a,b", "a"]) == ["a,b"]
    assert named(",", []) == [","]
    config = get_config(data_dir=str(data_dir), category="twill, felt")
    assert check_splits(config) == ["twill", "felt"]
    shutil.copytree(data_dir / "felt", tmp_path / "twill, felt")
    config.data_dir = str(tmp_path)
    assert check_splits(config) == ["twill, felt"]


def test_joined_arrays_are_their_concatenation() -> None:
    arrays = [np.arange(n * 12, dtype=np.uint8).reshape(n, 2, 2, 3) for n in (3, 1, 4)]
    joined, whole = Joined(arrays), np.concatenate(arrays)
    indices = np.array([7, 0, 3, 2, 4, 7])
    assert joined.shape == whole.shape
    np.testing.assert_array_equal(joined[indices], whole[indices])
