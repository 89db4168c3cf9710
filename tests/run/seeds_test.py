"""Trainings with several seeds, side by side in one folder."""

import shutil
from pathlib import Path

import pytest

import rd_jax
from tests.command import METRICS, assert_one_line, evaluation, results, run, succeeded, training
from tests.run.conftest import HOLDOUT, SEEDS


def test_each_seed_is_a_training_of_its_own(trained: Path, trained_seeds: Path) -> None:
    rows = [results(trained_seeds / "weave" / f"seed_{seed}") for seed in (0, 1)]
    alone = results(trained / "weave")
    for name in (*METRICS, "image_threshold", "pixel_threshold"):
        assert rows[0][name] == alone[name]
    assert rows[1]["seed"] == 1
    assert rows[0]["pixel_auroc"] != rows[1]["pixel_auroc"]
    summary = results(trained_seeds / "weave")
    expected = (rows[0]["pixel_auroc"] + rows[1]["pixel_auroc"]) / 2
    assert summary["pixel_auroc"] == pytest.approx(expected)
    _, _, known = rd_jax.restore(trained_seeds, "weave/seed_1")
    assert known["config"]["seed"] == 1


def test_a_seed_is_evaluated_alone_or_with_all(trained_seeds: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(trained_seeds, tmp_path / "copy")
    for path in workdir.glob("weave/seed_*/results.json"):
        path.unlink()
    succeeded(*evaluation(workdir, "--config.seeds=(1,)"))
    assert results(workdir / "weave")["seeds"] == [1]
    succeeded(*evaluation(workdir))
    assert results(workdir / "weave")["seeds"] == [0, 1]
    assert "mean ± standard deviation over the seeds" in (workdir / "results.md").read_text()
    assert (workdir / "results.md").read_text() == (trained_seeds / "results.md").read_text()
    done = run(*evaluation(workdir, "--config.seeds=(7,)"))
    assert_one_line(done, "no checkpoint with seeds (7,)")
    done = run(*evaluation(workdir, "--config.seeds=(1,)", "--config.blur_sigma=1"))
    assert_one_line(done, "the seeds of weave were evaluated with different blur_sigma")


def test_one_and_several_seeds_do_not_mix_in_a_folder(
    data_dir: Path, trained: Path, trained_seeds: Path
) -> None:
    done = run(*training(data_dir, trained, *HOLDOUT, *SEEDS))
    assert_one_line(done, "weave holds a training of one seed")
    done = run(*training(data_dir, trained_seeds, *HOLDOUT, *SEEDS[:1]))
    assert_one_line(done, "weave holds trainings of several seeds")


def test_seeds_that_differ_in_more_are_not_averaged(data_dir: Path, trained_seeds: Path) -> None:
    others = ("--config.category=weave", "--config.seeds=2,3", "--config.learning_rate=0.1")
    done = run(*training(data_dir, trained_seeds, *HOLDOUT, *others))
    assert_one_line(done, "seed_0 was trained with another config: learning_rate (0.005, now 0.1)")
    assert not (trained_seeds / "weave" / "seed_2").exists()
