"""Whatever interrupts a run, the same command ends as if nothing had."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from rd_jax.data.synthetic import write_category
from rd_jax.store import checkpoint
from tests.command import (
    METRICS,
    Process,
    assert_one_line,
    evaluation,
    results,
    run,
    succeeded,
    training,
)
from tests.run.conftest import HOLDOUT, KEPT, LAST_STEP, SHORT_RECIPE
from tests.run.leaves import assert_same_leaves, leaves
from tests.run.whole_run_test import same_figures

ONE = ("--config.category=weave", "--config.keep_optimizer=True")


def assert_same_training(one: Path, other: Path) -> None:
    assert_same_leaves(one, other)
    rows = [results(path) for path in (one, other)]
    assert same_figures(*rows)
    assert rows[0]["train_seconds"] > 0


def test_training_goes_on_where_it_was_interrupted(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "copy")
    untouched = (workdir / "cloth" / "results.json").stat().st_mtime_ns
    shutil.rmtree(workdir / "weave" / "checkpoints" / str(LAST_STEP))  # back to epoch 1
    (workdir / "weave" / "results.json").unlink()
    done = succeeded(*training(data_dir, workdir, *HOLDOUT, *KEPT))
    assert f"weave: 12 images, steps 2 to {LAST_STEP}" in done.stderr
    assert f"weave: step {LAST_STEP} of {LAST_STEP}, loss" in done.stderr
    assert f"cloth: trained already, step {LAST_STEP} of {LAST_STEP}" in done.stderr
    assert "cloth: evaluated already" in done.stderr
    assert (workdir / "cloth" / "results.json").stat().st_mtime_ns == untouched
    assert_same_training(workdir / "weave", trained / "weave")
    logged = (workdir / "weave" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in logged]
    assert steps == sorted(steps)
    assert steps[-1] == LAST_STEP


def test_a_kill_in_an_evaluation_costs_that_evaluation(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "copy")
    for name in ("results.json", "evaluation.npz", "thresholds.json"):
        (workdir / "weave" / name).unlink()
    again = training(data_dir, workdir, *HOLDOUT, *KEPT)
    killed = Process(tmp_path / "log", *again, AT="weave: Threshold", SIGNAL="SIGKILL").done()
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (workdir / "weave" / "results.json").exists()
    done = succeeded(*again)
    assert "cloth: evaluated already" in done.stderr
    assert "weave: trained already" in done.stderr
    assert "weave: evaluated already" not in done.stderr
    assert_same_training(workdir / "weave", trained / "weave")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_the_same_command_ends_bit_identically(
    data_dir: Path, trained: Path, tmp_path: Path, name: str
) -> None:
    again = training(data_dir, tmp_path, *HOLDOUT, *ONE, "--config.log_every_steps=1")
    stopped = Process(tmp_path / "log", *again, AT=f"step 1 of {LAST_STEP}", SIGNAL=name).done()
    assert stopped.returncode == 130, stopped.stderr
    assert "Traceback" not in stopped.stderr
    (step,) = checkpoint.steps(tmp_path / "weave" / "checkpoints")
    assert 1 <= step < LAST_STEP
    says = f"interrupted: weave is saved at step {step} of {LAST_STEP}; the same command goes on"
    assert says in stopped.stderr
    done = succeeded(*again)
    assert f"steps {step} to {LAST_STEP}" in done.stderr
    assert_same_training(tmp_path / "weave", trained / "weave")


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_nothing(data_dir: Path, tmp_path: Path) -> None:
    long = (*ONE, "--config.num_epochs=40", "--config.log_every_steps=1")
    expected, last_step = tmp_path / "expected", 60
    succeeded(*training(data_dir, expected, *HOLDOUT, *long))
    again = training(data_dir, tmp_path, *HOLDOUT, *long, "--config.checkpoint_every_epochs=1")
    rng, last = random.Random(0), 0
    for _ in range(20):
        process = Process(tmp_path / "log", *again)
        reached = min(last + rng.randint(1, 3), last_step - 1)
        process.wait_for(f"step {reached} of {last_step}")
        time.sleep(rng.uniform(0, 0.1))
        process.process.kill()
        process.done()
        found = checkpoint.steps(tmp_path / "weave" / "checkpoints")
        assert not found or found[0] >= last
        last = found[0] if found else 0
    done = succeeded(*again)
    assert f"steps {last} to {last_step}" in done.stderr or "trained already" in done.stderr
    assert_same_training(tmp_path / "weave", expected / "weave")


def test_two_epochs_gone_on_with_to_four_are_four(data_dir: Path, tmp_path: Path) -> None:
    averaged = (*HOLDOUT, *ONE, *SHORT_RECIPE, "--config.dtype=bfloat16")
    for folder, epochs in (("at once", 4), ("later", 2), ("later", 4)):
        number = f"--config.num_epochs={epochs}"
        done = succeeded(*training(data_dir, tmp_path / folder, *averaged, number))
    assert "weave: 12 images, steps 3 to 6" in done.stderr
    assert_same_training(tmp_path / "later" / "weave", tmp_path / "at once" / "weave")
    fewer = run(*training(data_dir, tmp_path / "later", *averaged, "--config.num_epochs=3"))
    assert_one_line(fewer, "num_epochs (4, now 3); choose another")


def test_a_finished_training_keeps_what_evaluation_needs(data_dir: Path, tmp_path: Path) -> None:
    one = (*HOLDOUT, "--config.category=weave")
    succeeded(*training(data_dir, tmp_path, *one, "--config.checkpoint_every_epochs=1"))
    folder = tmp_path / "weave" / "checkpoints"
    assert checkpoint.steps(folder) == [LAST_STEP]
    assert not [path for path in folder.rglob("*") if "optimizer" in path.name]
    before = results(tmp_path / "weave")
    (tmp_path / "weave" / "results.json").unlink()
    succeeded(*evaluation(tmp_path))
    assert same_figures(results(tmp_path / "weave"), before)
    message = (
        "finished after 2 epochs and did not keep the optimiser's state, which more epochs need: "
    )
    for more in ((), ("--config.keep_optimizer=True",)):
        done = run(*training(data_dir, tmp_path, *one, "--config.num_epochs=3", *more))
        assert_one_line(done, message)


def test_seeds_are_called_unfinished_if_one_has_fewer_steps(
    trained_seeds: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained_seeds, tmp_path / "copy")
    shutil.rmtree(workdir / "weave" / "seed_1" / "checkpoints" / str(LAST_STEP))
    done = succeeded(*evaluation(workdir))
    assert f"\nweave is UNFINISHED: step 2 of {LAST_STEP}.\n" in done.stdout


def test_starting_anew_keeps_what_was_there(data_dir: Path, trained: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(trained, tmp_path / "copy")
    other = (*HOLDOUT, "--config.category=weave", "--config.seed=3")
    done = run(*training(data_dir, workdir, *other))
    assert_one_line(done, "seed (0, now 3); choose another")
    done = succeeded(*training(data_dir, workdir, *other, "--restart"))
    (kept,) = workdir.glob("replaced-*/weave")
    assert_same_leaves(kept, trained / "weave")
    assert done.stdout.count("\n| weave | ") == 1
    assert results(workdir / "weave")["seed"] == 3


@pytest.mark.parametrize("damage", ["an empty file", "a file is missing", "another bit"])
def test_a_damaged_checkpoint_is_moved_aside_and_trained_again(
    data_dir: Path, trained: Path, tmp_path: Path, damage: str
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "copy")
    (workdir / "weave" / "results.json").unlink()
    last = workdir / "weave" / "checkpoints" / str(LAST_STEP)
    files = (path for path in (last / "student").rglob("*") if path.is_file())
    path = max(files, key=lambda path: path.stat().st_size)
    if damage == "a file is missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "another bit" else b"")
    done = succeeded(*training(data_dir, workdir, *HOLDOUT, *KEPT))
    assert any((workdir / "weave" / "damaged").iterdir())
    assert f"steps 2 to {LAST_STEP}" in done.stderr
    assert_same_training(workdir / "weave", trained / "weave")


def test_a_checkpoint_of_other_devices_gives_the_same_figures(tmp_path: Path) -> None:
    # Rounding depends on a device's share of a batch. Pixels that it makes change places move a
    # metric by more than 1e-6 where there are only a few thousand of them.
    write_category(tmp_path / "data", num_train=6, num_test=16, size=64)
    more = ("--config.image_size=64,32", "--config.num_epochs=1")
    flags = training(tmp_path / "data", tmp_path / "work", *more)
    folder = tmp_path / "work" / "weave"
    succeeded(*flags)
    expected = results(folder)
    evaluated = Process(tmp_path / "log", *flags, "--mode", "eval", JAX_NUM_CPU_DEVICES="1").done()
    assert evaluated.returncode == 0, evaluated.stderr
    row = results(folder)
    assert (expected["device"][:3], row["device"][:3]) == ("4 x", "1 x")
    names = (*METRICS, "image_threshold")
    assert {n: row[n] for n in names} == pytest.approx({n: expected[n] for n in names}, abs=1e-6)


def test_a_full_disk_harms_nothing_that_was_there(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("a small disk to fill can be mounted by root alone")
    try:
        work = disk / "work"
        work.mkdir()
        shutil.copytree(trained / "cloth", work / "cloth")
        succeeded(*evaluation(work))
        before, kept = (work / "results.json").read_text(), leaves(work / "cloth")
        free = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(os.urandom(max(free - 20_000, 0)))
        other = training(data_dir, work, *HOLDOUT, "--config.category=weave")
        done = Process(tmp_path / "log", *other).done()
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert "No space left on device" in done.stderr.splitlines()[-1]
        assert (work / "results.json").read_text() == before
        for a, b in zip(kept, leaves(work / "cloth"), strict=True):
            np.testing.assert_array_equal(a, b)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
