"""Several processes give what one gives."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from rd_jax.data.synthetic import write_category
from rd_jax.store import checkpoint
from rd_jax.store.lock import claimed
from rd_jax.store.workdir import training_of
from tests.command import ROOT, SMALL


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def run_all(commands: list[list[str]], **environment: str) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of processes that run together."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    outputs = [process.communicate(timeout=400) for process in processes]
    return [(p.returncode, *output) for p, output in zip(processes, outputs, strict=True)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_category(folder, num_train=11, num_test=3, size=64)
    return folder


def test_two_processes_of_two_devices_equal_one_of_four(data_dir: Path, tmp_path: Path) -> None:
    found = {}
    for num_processes in (1, 2):
        output, port = tmp_path / str(num_processes), str(free_port())
        output.mkdir()
        done = run_all(
            [
                [
                    *("tests.run.distributed_worker", str(i), str(num_processes), port),
                    *(str(data_dir), str(output)),
                ]
                for i in range(num_processes)
            ],
            XDG_CACHE_HOME=str(tmp_path / f"cache-{num_processes}"),
        )
        assert [code for code, _, _ in done] == [0] * num_processes, done
        params = dict(np.load(output / "params.npz"))
        (step,) = checkpoint.steps(output / "checkpoints")
        saved = checkpoint.load(output / "checkpoints", step).student_variables["params"]
        assert sum(leaf.size for leaf in jax.tree.leaves(saved)) == sum(
            leaf.size for leaf in params.values()
        )
        found[num_processes] = params, json.loads((output / "metrics.json").read_text())
    (one, one_metrics), (two, two_metrics) = found[1], found[2]
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=1e-5)
    assert all(value is not None for value in one_metrics.values())
    assert two_metrics == pytest.approx(one_metrics, abs=1e-6)
    decoded = [
        {path.name: path.read_bytes() for path in tmp_path.glob(f"cache-{n}/rd_jax/images/*")}
        for n in (1, 2)
    ]
    assert decoded[0] == decoded[1]
    assert len(decoded[0]) == 2 * 3  # training images, test images, masks; a checksum for each


def two_commands(data_dir: Path, workdir: Path, *more: str) -> list[list[str]]:
    common = [
        *("tests.tiny_main", "--config", "configs/mvtec.py:weave", *SMALL),
        *(f"--config.data_dir={data_dir}", "--workdir", str(workdir)),
        *(f"--coordinator_address=localhost:{free_port()}", "--num_processes=2", *more),
    ]
    return [[*common, f"--process_id={i}"] for i in range(2)]


def test_the_command_line_runs_in_several_processes(data_dir: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "work"

    def run(*more: str) -> list[tuple[int, str, str]]:
        return run_all(two_commands(data_dir, workdir, *more), JAX_NUM_CPU_DEVICES="2")

    (first, text, errors), (second, other_text, other_errors) = run()
    assert (first, second) == (0, 0), errors + other_errors
    assert "| weave | " in text
    assert "| weave | " not in other_text
    assert (workdir / "report.html").exists()
    row = json.loads((workdir / "weave" / "results.json").read_text())
    assert row["device"].startswith("4 x")
    again = run()
    assert all(code == 0 and "evaluated already" in errors for code, _, errors in again), again
    with claimed(workdir, [training_of(workdir, "weave")]):
        left = run()
    assert all(code == 0 and "| weave | " not in text for code, text, _ in left), left
    assert f"weave is being worked on by process {os.getpid()} on " in left[0][2]
    refused = run("--config.learning_rate=0.1")
    assert all(code == 2 and "another config" in errors for code, _, errors in refused), refused


def test_a_signal_to_one_of_two_processes_saves_and_stops_both(
    data_dir: Path, tmp_path: Path
) -> None:
    long = ("--config.num_epochs=100000", "--config.log_every_steps=1")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in two_commands(data_dir, tmp_path, *long)
    ]
    assert processes[0].stderr
    for line in processes[0].stderr:
        if "step 20 of" in line:
            processes[1].send_signal(signal.SIGTERM)
            break
    errors = [process.communicate(timeout=400)[1] for process in processes]
    assert [process.returncode for process in processes] == [130, 130], errors
    (step,) = checkpoint.steps(tmp_path / "weave" / "checkpoints")
    assert step >= 20
    assert all(f"interrupted: weave is saved at step {step} of" in text for text in errors), errors
