"""One training for several categories: one student, and what is each category's own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import rd_jax
from rd_jax.data.order import holdout_indices
from rd_jax.method.metrics import METRICS, metrics_of
from rd_jax.predict import __main__ as predict
from rd_jax.store import checkpoint
from rd_jax.store.rows import read_rows
from rd_jax.store.workdir import JOINT as ALL
from rd_jax.store.workdir import Workdir, find_training
from rd_jax.system.errors import UserError
from tests.command import assert_one_line, captured, evaluation, results, run, succeeded, training
from tests.run.conftest import HOLDOUT, JOINT, KEPT
from tests.run.leaves import assert_same_leaves
from tests.run.scores import held_out, maps_and_scores, split_of
from tests.run.whole_run_test import same_figures

NAMES = ("cloth", "weave")


def test_each_category_is_evaluated_with_the_one_student(
    trained_jointly: Path, data_dir: Path
) -> None:
    (own,) = Workdir(trained_jointly).trainings()
    assert own.checkpoints == trained_jointly / ALL / "checkpoints"
    assert [e.folder for e in Workdir(trained_jointly).evaluations()] == [
        trained_jointly / name for name in NAMES
    ]
    assert own.metrics == trained_jointly / ALL / "metrics.jsonl"
    halfway, last = sorted(checkpoint.steps(own.checkpoints))
    rows = {step: [] for step in (halfway, last)}
    for step in rows:
        student = checkpoint.load(own.checkpoints, step).student_variables
        for name in NAMES:
            split = split_of(data_dir, name)
            found = maps_and_scores(student, split.test)
            rows[step].append(metrics_of(*found, split.labels, split.masks))
    for name, expected in zip(NAMES, rows[last], strict=True):
        row = results(trained_jointly / name)
        assert {key: row[key] for key in METRICS} == pytest.approx(expected, abs=1e-5)
        assert row["joint"]
    (mean,) = (row for row in read_rows(own.metrics) if "aupro" in row)
    assert mean["step"] == halfway
    expected = {name: np.mean([row[name] for row in rows[halfway]]) for name in METRICS}
    assert {name: mean[name] for name in METRICS} == pytest.approx(expected, abs=1e-5)
    table = (trained_jointly / "results.md").read_text()
    assert "One student for all categories, trained on them together." in table
    assert [table.count(f"\n| {name} | ") for name in (*NAMES, "mean", ALL)] == [1, 1, 1, 0]


def test_the_student_is_that_of_a_category_with_the_images_of_all_but_those_held_out(
    data_dir: Path, trained_jointly: Path, tmp_path: Path
) -> None:
    both = tmp_path / "data" / "both"
    shutil.copytree(data_dir / "weave" / "test", both / "test")
    (both / "train" / "good").mkdir(parents=True)
    for name in NAMES:
        paths = sorted((data_dir / name / "train" / "good").iterdir())
        for i in holdout_indices(0, 0.5, len(paths))[0]:
            shutil.copy(paths[i], both / "train" / "good" / f"{name}_{i:03}.png")
    succeeded(*training(tmp_path / "data", tmp_path / "work", "--config.keep_optimizer=True"))
    assert_same_leaves(trained_jointly / ALL, tmp_path / "work" / "both")


def test_each_category_has_its_threshold_and_the_run_has_one_for_all(
    trained_jointly: Path, data_dir: Path, tmp_path: Path
) -> None:
    _, student, known = rd_jax.restore(trained_jointly, ALL)
    of_each = {
        name: maps_and_scores(student, held_out(split_of(data_dir, name)))[1] for name in NAMES
    }
    for name, scores in of_each.items():
        assert results(trained_jointly / name)["num_held_out"] == len(scores)
        _, _, own = rd_jax.restore(trained_jointly, name)
        assert own["thresholds"]["image_threshold"] == pytest.approx(scores.max(), rel=2e-4)
    pooled = np.sort(np.concatenate([*of_each.values()]))
    assert known["thresholds"]["num_images"] == len(pooled)
    for folder in (trained_jointly, trained_jointly / ALL):
        thresholds = rd_jax.load_predictor(folder, false_positive_rate=0.5).thresholds
        assert thresholds.image_threshold == pytest.approx(pooled[-6], rel=2e-4)
        assert thresholds.kept_rate == 6 / 13
    images = str(data_dir / "weave" / "test" / "good")
    for folder, says, threshold in (
        (
            trained_jointly,
            ", one threshold for all of cloth, weave: on average 7.69% of",
            pooled.max(),
        ),
        (trained_jointly / "cloth", ", for cloth: on average 14.3% of", of_each["cloth"].max()),
    ):
        output = tmp_path / folder.name
        done = captured(predict.main, ["--workdir", str(folder), images, "--output", str(output)])
        assert done.returncode == 0, done.stderr
        assert says in done.stderr
        for line in (output / "predictions.jsonl").read_text().splitlines():
            assert json.loads(line)["threshold"] == pytest.approx(threshold, rel=2e-4)


def test_an_interrupted_training_goes_on_bit_identically(
    data_dir: Path, trained_jointly: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained_jointly, tmp_path / "work")
    (last, _) = checkpoint.steps(workdir / ALL / "checkpoints")
    shutil.rmtree(workdir / ALL / "checkpoints" / str(last))
    for name in NAMES:
        shutil.rmtree(workdir / name)
    succeeded(*training(data_dir, workdir, *HOLDOUT, *KEPT, *JOINT))
    assert_same_leaves(trained_jointly / ALL, workdir / ALL)
    for name in NAMES:
        assert same_figures(results(workdir / name), results(trained_jointly / name))


def test_a_training_killed_before_its_evaluation_is_evaluated(
    data_dir: Path, trained_jointly: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "work"
    shutil.copytree(trained_jointly / ALL, workdir / ALL)
    with pytest.raises(UserError, match="--mode eval"):
        rd_jax.load_predictor(workdir)
    own = f"--config.data_dir={data_dir}"
    succeeded(*evaluation(workdir, own, "--config.category=weave"))
    assert not (workdir / "cloth").exists()
    assert rd_jax.load_predictor(workdir / "weave").thresholds.num_images == 6
    done = succeeded(*evaluation(workdir, own, "--config.category=weave,cloth"))
    assert "weave: evaluated already" in done.stderr
    assert (workdir / "results.md").read_text() == (trained_jointly / "results.md").read_text()
    done = run(*evaluation(workdir, own, "--config.category=cloth,screw"))
    assert_one_line(done, "no checkpoint of screw in ")


def test_a_joint_training_and_others_do_not_mix(
    data_dir: Path, trained_jointly: Path, tmp_path: Path
) -> None:
    done = run(*training(data_dir, trained_jointly, *HOLDOUT))
    assert_one_line(done, f"{ALL} holds one training for all categories: set --config.joint=True")
    done = run(*training(data_dir, trained_jointly, *HOLDOUT, *JOINT, "--config.category=cloth"))
    assert_one_line(done, "was trained with the categories cloth, weave, not with cloth; choose")
    others = shutil.copytree(data_dir, tmp_path / "data")
    next((others / "weave" / "train" / "good").iterdir()).unlink()
    done = run(*training(others, trained_jointly, *HOLDOUT, *JOINT))
    assert_one_line(done, "was trained with other training images of weave than are there now; ch")
    with pytest.raises(UserError, match="was trained on cloth, weave, not on screw"):
        rd_jax.load_predictor(trained_jointly / "screw")

    workdir = tmp_path / "work"
    (workdir / "cloth" / "checkpoints").mkdir(parents=True)
    message = "cloth is of a training of this category alone: choo"
    assert_one_line(run(*training(data_dir, workdir, *JOINT)), message)
    restarted = ("--config.category=weave", "--restart")
    assert_one_line(run(*training(data_dir, workdir, *JOINT, *restarted)), message)
    done = run("--config", "one_class", *JOINT, "--workdir", str(workdir))
    assert_one_line(done, "config.joint=True: must be False with config.dataset")


def test_seeds_of_a_joint_training_and_starting_anew(data_dir: Path, tmp_path: Path) -> None:
    short = (*HOLDOUT, "--config.num_epochs=1")
    succeeded(*training(data_dir, tmp_path, *short, *JOINT, "--config.seeds=0,1"))
    assert {path.parent for path in tmp_path.rglob("checkpoints")} == {
        tmp_path / ALL / f"seed_{seed}" for seed in (0, 1)
    }
    assert results(tmp_path / "cloth")["seeds"] == [0, 1]
    one, category = find_training(tmp_path / "cloth" / "seed_1")
    assert (one.folder, category) == (tmp_path / ALL / "seed_1", "cloth")
    assert rd_jax.restore(tmp_path, "cloth/seed_1")[2]["thresholds"]["num_images"] == 6
    with pytest.raises(UserError, match="several trainings: add one of seed_0, seed_1 to --workd"):
        find_training(tmp_path / "cloth")
    done = succeeded(*training(data_dir, tmp_path, *short, "--config.category=weave", "--restart"))
    moved = {path.name for path in tmp_path.glob("replaced-*/*")}
    assert moved == {"cloth", "weave", ALL}
    assert "| cloth |" not in done.stdout
    assert find_training(tmp_path)[0].folder == tmp_path / "weave"
