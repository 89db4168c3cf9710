"""Whatever interrupts a run, the same command ends as if nothing had."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rd_jax.data.synthetic import write_category
from rd_jax.store import checkpoint
from tests.command import METRICS, ROOT, SMALL, assert_one_line, run
from tests.command import start as run_process
from tests.run.end_to_end_test import results

CATEGORIES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_category(folder, num_train=6, num_test=2, size=64)
    for name in CATEGORIES:
        shutil.copytree(folder / "weave", folder / name)
    shutil.rmtree(folder / "weave")
    return folder


def arguments(data_dir: Path, workdir: Path, *more: str) -> tuple[str, ...]:
    return (
        *("--config", "configs/mvtec.py", f"--config.data_dir={data_dir}", *SMALL),
        *("--config.keep_optimizer=True", "--workdir", str(workdir), *more),
    )


def trained_leaves(training: Path) -> list[np.ndarray]:
    """All arrays of the latest checkpoint, with the optimiser's."""
    folder = training / "checkpoints"
    (step, *_) = checkpoint.steps(folder)
    with checkpoint._reader(folder) as manager:
        items = manager.restore(
            step,
            args=checkpoint.ocp.args.Composite(
                student=checkpoint.ocp.args.StandardRestore(),
                optimizer=checkpoint.ocp.args.StandardRestore(),
            ),
        )
    return [np.int32(step), *jax.tree.leaves((items.student, items.optimizer))]


def assert_same_training(one: Path, other: Path) -> None:
    for a, b in zip(trained_leaves(one), trained_leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
    rows = [results(path.parent, path.name) for path in (one, other)]
    for name in ("train_seconds", "eval_seconds", "images_per_second"):
        assert all(row.pop(name) for row in rows)
    assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def uninterrupted(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("uninterrupted")
    done = run(*arguments(data_dir, workdir))
    assert done.returncode == 0, done.stderr
    return workdir


def test_a_kill_in_the_evaluation_of_the_third_category_costs_that_evaluation(
    data_dir: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    done = run_process(*arguments(data_dir, tmp_path), KILL_AT="evaluation/c")
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "c" / "results.json").exists()
    files = [tmp_path / name / "results.json" for name in ("a", "b")]
    before = [path.stat().st_mtime_ns for path in files]
    done = run(*arguments(data_dir, tmp_path))
    assert done.returncode == 0, done.stderr
    assert "a: evaluated already" in done.stderr
    assert "c: trained already" in done.stderr
    assert "c: evaluated already" not in done.stderr
    assert [path.stat().st_mtime_ns for path in files] == before
    for name in CATEGORIES:
        assert_same_training(tmp_path / name, uninterrupted / name)


LONG = ("--config.category=a", "--config.num_epochs=40", "--config.log_every_steps=1")


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.tiny_main", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def long_training(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("long")
    done = run(*arguments(data_dir, workdir, *LONG))
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_ends_bit_identically(
    data_dir: Path, long_training: Path, tmp_path: Path, number: int
) -> None:
    with start(*arguments(data_dir, tmp_path, *LONG)) as process:
        assert process.stderr
        for line in process.stderr:
            if "step 3 of 60" in line:
                process.send_signal(number)
                break
        errors = process.stderr.read()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    (step, *_) = checkpoint.steps(tmp_path / "a" / "checkpoints")
    assert 3 <= step < 60
    assert f"interrupted: a is saved at step {step} of 60; the same command goes on" in errors
    done = run(*arguments(data_dir, tmp_path, *LONG))
    assert done.returncode == 0, done.stderr
    assert f"steps {step} to 60" in done.stderr
    assert_same_training(tmp_path / "a", long_training / "a")


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_nothing(
    data_dir: Path, long_training: Path, tmp_path: Path
) -> None:
    rng, kills, last = random.Random(0), 0, 0
    command = arguments(data_dir, tmp_path, *LONG, "--config.checkpoint_every_epochs=1")
    while kills < 20:
        with start(*command) as process:
            assert process.stderr
            reached = last + rng.randint(1, 3)  # so that some of the moments are in a training
            for line in process.stderr:
                if f"step {min(reached, 59)} of 60" in line:
                    break
            time.sleep(rng.uniform(0, 0.1))
            process.kill()
            errors = process.stderr.read()
        assert process.returncode == -signal.SIGKILL, errors
        kills += 1
        found = checkpoint.steps(tmp_path / "a" / "checkpoints")
        assert not found or found[0] >= last
        last = found[0] if found else 0
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert f"steps {last} to 60" in done.stderr or "trained already" in done.stderr
    shutil.rmtree(tmp_path / "a" / "damaged", ignore_errors=True)
    assert_same_training(tmp_path / "a", long_training / "a")


def test_four_epochs_gone_on_with_to_eight_are_eight(data_dir: Path, tmp_path: Path) -> None:
    averaged = ("--config.category=a", "--config.ema=0.9", "--config.num_epochs")
    for folder, epochs in (("at once", 8), ("later", 4), ("later", 8)):
        command = arguments(data_dir, tmp_path / folder, *averaged[:2], f"{averaged[2]}={epochs}")
        done = run(*command)
        assert done.returncode == 0, done.stderr
    assert "a: 6 images, steps 6 to 12" in done.stderr
    assert_same_training(tmp_path / "later" / "a", tmp_path / "at once" / "a")
    fewer = arguments(data_dir, tmp_path / "later", *averaged[:2], f"{averaged[2]}=7")
    assert_one_line(run(*fewer), "num_epochs (8, now 7); choose another")


def test_a_finished_training_keeps_what_evaluation_needs(data_dir: Path, tmp_path: Path) -> None:
    common = arguments(data_dir, tmp_path, "--config.category=a", "--config.keep_optimizer=False")
    done = run(*common, "--config.checkpoint_every_epochs=1")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "a" / "checkpoints"
    assert checkpoint.steps(folder) == [3]
    assert not [path for path in folder.rglob("*") if "optimizer" in path.name]
    assert "a: evaluated already" in run(*common).stderr
    before = results(tmp_path, "a")
    (tmp_path / "a" / "results.json").unlink()
    done = run("--mode", "eval", "--config", "configs/mvtec.py", "--workdir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert {name: results(tmp_path, "a")[name] for name in METRICS} == {
        name: before[name] for name in METRICS
    }
    message = (
        "finished after 2 epochs and did not keep the optimiser's state, which more need: start"
    )
    assert_one_line(run(*common, "--config.num_epochs=3"), message)
    assert_one_line(run(*common, "--config.num_epochs=3", "--config.keep_optimizer=True"), message)
    done = run(*common, "--config.num_epochs=3", "--restart")
    assert done.returncode == 0, done.stderr


def test_seeds_of_which_one_was_gone_on_with_are_called_unfinished(
    data_dir: Path, tmp_path: Path
) -> None:
    common = ("--config.category=a", "--config.seeds=0,1", "--config.num_epochs")
    for epochs, kill_at in ((1, ""), (2, "evaluation/seed_1")):
        command = arguments(data_dir, tmp_path, *common[:2], f"{common[2]}={epochs}")
        done = run_process(*command, KILL_AT=kill_at) if kill_at else run(*command)
        assert done.returncode == (-signal.SIGKILL if kill_at else 0), done.stderr
    shutil.rmtree(tmp_path / "a" / "seed_1" / "checkpoints" / "3")  # as if killed before it
    done = run("--config", "configs/mvtec.py", "--workdir", str(tmp_path), "--mode", "eval")
    assert done.returncode == 0, done.stderr
    assert "**a is UNFINISHED: step 2 of 3.**" in done.stdout


def test_starting_anew_keeps_what_was_there(data_dir: Path, tmp_path: Path) -> None:
    common = arguments(data_dir, tmp_path, "--config.category=a", "--config.num_epochs=1")
    assert run(*common).returncode == 0
    before = trained_leaves(tmp_path / "a")
    other = "--config.learning_rate=0.001"
    assert_one_line(run(*common, other), "learning_rate (0.005, now 0.001); choose another")
    done = run(*common, other, "--restart")
    assert done.returncode == 0, done.stderr
    (kept,) = tmp_path.glob("replaced-*/a")
    for a, b in zip(before, trained_leaves(kept), strict=True):
        np.testing.assert_array_equal(a, b)
    assert done.stdout.count("\n| a | ") == 1


def test_a_checkpoint_of_eight_devices_is_evaluated_on_one_and_on_two(tmp_path: Path) -> None:
    # Rounding depends on a device's share of a batch. Pixels that it makes change places move a
    # metric by more than 1e-6 where there are only a few thousand of them.
    write_category(tmp_path / "data", num_train=6, num_test=8, size=64)
    common = arguments(
        *(tmp_path / "data", tmp_path, "--config.category=weave", "--config.batch_size=8"),
        *("--config.image_size=64", "--config.num_epochs=1"),
    )
    found = []
    for num_devices, mode in ((8, "train"), (1, "eval"), (2, "eval")):
        done = run_process(*common, "--mode", mode, JAX_NUM_CPU_DEVICES=str(num_devices))
        assert done.returncode == 0, done.stderr
        row = results(tmp_path, "weave")
        assert row["device"].startswith(f"{num_devices} x")
        found.append({name: row[name] for name in METRICS})
    assert found[1] == pytest.approx(found[0], abs=1e-6)
    assert found[2] == pytest.approx(found[0], abs=1e-6)


def test_a_full_disk_harms_nothing_that_was_there(data_dir: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("a small disk to fill can be mounted by root alone")
    try:
        common = arguments(data_dir, disk / "work", "--config.category=a", "--config.num_epochs=1")
        done = run(*common)
        assert done.returncode == 0, done.stderr
        before = json.loads((disk / "work" / "results.json").read_text())
        leaves = trained_leaves(disk / "work" / "a")
        free = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(os.urandom(max(free - 20_000, 0)))
        done = run_process(*arguments(data_dir, disk / "work", "--config.category=b"))
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert "No space left on device" in done.stderr.splitlines()[-1]
        assert json.loads((disk / "work" / "results.json").read_text()) == before
        for a, b in zip(leaves, trained_leaves(disk / "work" / "a"), strict=True):
            np.testing.assert_array_equal(a, b)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
