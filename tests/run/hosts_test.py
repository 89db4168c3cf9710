"""Several processes as one give what one gives, and end together."""

import shutil
import signal
import socket
import time
from pathlib import Path

import jax
import numpy as np

from rd_jax.store import checkpoint
from tests.command import METRICS, Process, assert_one_line, results, training
from tests.run.conftest import HOLDOUT, LAST_STEP
from tests.run.hosts_worker import trained as trained_here
from tests.run.hosts_worker import work

TWO_DEVICES = {"JAX_NUM_CPU_DEVICES": "2"}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def two(folder: Path, *arguments: str, silence: int = 20, **environment: str) -> list[Process]:
    """The command in two processes of two devices; what befalls the second is in `environment`.

    After `silence`, in seconds, one counts as dead.
    """
    where = (f"--coordinator_address=localhost:{free_port()}", "--num_processes=2")
    return [
        Process(
            folder / f"{i}.log",
            *arguments,
            *where,
            f"--process_id={i}",
            **TWO_DEVICES | {"SILENCE": str(silence)} | (environment if i else {}),
        )
        for i in range(2)
    ]


def test_two_processes_of_two_devices_train_as_one_of_four(data_dir: Path, tmp_path: Path) -> None:
    given = ("2", str(free_port()), str(data_dir), str(tmp_path))
    processes = [
        Process(tmp_path / f"{i}.log", str(i), *given, what=work, **TWO_DEVICES) for i in range(2)
    ]
    with jax.enable_x64(True):
        one = trained_here(data_dir, tmp_path / "one")
    found = [process.done() for process in processes]
    assert [done.returncode for done in found] == [0, 0], found
    two = np.load(tmp_path / "params.npz")
    assert set(two) == set(one)
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=1e-5)
    (step,) = checkpoint.steps(tmp_path / "checkpoints")
    saved = checkpoint.load(tmp_path / "checkpoints", step).student_variables["params"]
    for a, b in zip(jax.tree.leaves(saved), map(np.asarray, one.values()), strict=True):
        assert a.size == b.size


def test_a_signal_to_one_saves_and_stops_both_and_the_same_command_goes_on(
    data_dir: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "work"
    flags = training(data_dir, workdir, *HOLDOUT, "--config.category=weave")
    flags += ("--config.log_every_steps=1", "--config.num_epochs=20")
    stopped = [
        process.done()
        for process in two(tmp_path, *flags, AT="weave: step 1 of 30", SIGNAL="SIGTERM")
    ]
    assert [done.returncode for done in stopped] == [130, 130], stopped
    (step,) = checkpoint.steps(workdir / "weave" / "checkpoints")
    assert 1 <= step < 30
    for done in stopped:
        assert f"interrupted: weave is saved at step {step} of 30" in done.stderr
    (first, second) = (process.done() for process in two(tmp_path, *flags))
    assert (first.returncode, second.returncode) == (0, 0), (first, second)
    assert f"steps {step} to 30" in first.stderr
    assert "| weave | " in first.stdout
    assert "| weave | " not in second.stdout
    assert (workdir / "report.html").exists()
    row = results(workdir / "weave")
    assert row["device"].startswith("4 x")
    assert all(row[name] is not None for name in METRICS)


def test_processes_with_different_commands_are_refused(data_dir: Path, tmp_path: Path) -> None:
    flags = training(data_dir, tmp_path / "work", "--config.category=weave")
    where = (f"--coordinator_address=localhost:{free_port()}", "--num_processes=2")
    started = [
        Process(
            tmp_path / f"{i}.log",
            *(*flags, *where, f"--process_id={i}", f"--config.adam_b1=0.{i + 5}"),
            **TWO_DEVICES,
        )
        for i in range(2)
    ]
    for process in started:
        done = process.done()._replace(stdout="")  # Gloo tells there of its ranks
        assert_one_line(done, "config")
    assert not (tmp_path / "work" / "weave" / "checkpoints").exists()


def test_a_process_that_waits_in_vain_says_so_and_ends(tmp_path: Path) -> None:
    """Both the first one, which others would reach, and one that reaches nobody."""
    flags = ("--config", "demo", "--workdir", str(tmp_path / "work"), "--join_timeout=1")
    addresses = [f"localhost:{free_port()}" for _ in range(2)]
    started = [
        Process(
            tmp_path / f"{i}.log",
            *(*flags, f"--coordinator_address={address}", "--num_processes=2", f"--process_id={i}"),
        )
        for i, address in enumerate(addresses)
    ]
    for process, address in zip(started, addresses, strict=True):
        done = process.done()
        assert f"INFO waiting for 2 processes at {address}\n" in done.stderr
        assert_one_line(done, f"waited 1 s for 2 processes at {address}, and not all came: start")
    assert not (tmp_path / "work").exists()


def test_when_one_dies_the_other_ends_and_the_checkpoint_is_whole(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "work")
    shutil.rmtree(workdir / "weave" / "checkpoints" / str(LAST_STEP))
    flags = training(data_dir, workdir, *HOLDOUT, "--config.category=weave")
    first, second = two(tmp_path, *flags, silence=6, AT="weave: 12 images", SIGNAL="SIGKILL")
    second.done()
    died = time.monotonic()
    done = first.done()
    assert time.monotonic() - died < 60
    assert done.returncode in (1, -signal.SIGABRT), done.stderr  # as docs/hosts.md has it
    assert checkpoint.steps(workdir / "weave" / "checkpoints") == [2]
