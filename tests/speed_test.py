"""The benchmark measures what it says, on machines with few packages, and loses no figure."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.speed import __main__ as speed
from benchmarks.speed.worker import Call, Job, NoAnswerError, Worker, sample
from tests.bare import bare_machine
from tests.command import ROOT

ONE_DEVICE = {"JAX_NUM_CPU_DEVICES": "1", "OMP_NUM_THREADS": "1"}
ROW = speed.Row("step", "training_step", {}, (speed.OWN, speed.EAGER), repeats=2)


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | ONE_DEVICE | environment,
    )


def names(sizes: speed.Sizes) -> list[str]:
    return [row.name for row in speed.rows_of(sizes, "resnet10", has_torch=True, has_bfloat16=True)]


def measured(
    monkeypatch: pytest.MonkeyPatch, fails_at: int = -1, deadline: float | None = None
) -> tuple[speed.Measured, list[str]]:
    """What is found of two columns, and who was asked; the first one's answer may fail."""
    log: list[str] = []

    class Answering:
        def __init__(self, job: Job):
            self.name, self.answers = job.module.rpartition("_")[2], 0

        def ask(self, *_: Any) -> Any:
            log.append(self.name)
            self.answers += 1
            if self.name == "jax" and self.answers - 1 == fails_at:
                raise NoAnswerError("out of memory")
            return (2.0, 2**20) if self.answers > 1 else {"platform": "cpu"}

        def close(self) -> None:
            log.append(f"{self.name} ends")

    monkeypatch.setattr(speed, "Worker", Answering)
    return speed.measure(ROW, "cpu", 0.0, deadline), log


def test_columns_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    found, log = measured(monkeypatch)
    assert log == ["jax", "torch"] * 3 + ["torch ends", "jax ends"]
    assert found.seconds == dict.fromkeys(ROW.columns, (2.0, 2.0, 2.0))
    assert found.peak_bytes == dict.fromkeys(ROW.columns, 2**20)


@pytest.mark.parametrize("fails_at", [0, 1])
def test_a_column_that_fails_is_lost_alone(monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    found, log = measured(monkeypatch, fails_at)
    assert found.failures == {speed.OWN: "out of memory"}
    assert list(found.seconds) == [speed.EAGER]
    assert log.count("torch") == 3
    assert log.index("jax ends") < len(log) - 2  # before the others go on


def test_nothing_is_asked_when_the_budget_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    found, log = measured(monkeypatch, deadline=time.monotonic())
    assert not log
    assert not found.seconds
    assert found.failures.keys() == {*ROW.columns}


def test_a_cell_says_the_median_the_spread_and_the_memory() -> None:
    assert speed.quartiles([1.0, 9.0, 3.0, 2.0, 4.0]) == (3.0, 2.0, 4.0)
    assert speed.quartiles([5.0]) == (5.0, 5.0, 5.0)
    found = speed.Measured({}, {"a": (0.0125, 0.012, 0.0141), "b": (3.0, 3.0, 3.0)})
    found.peak_bytes, found.failures = {"a": 3 * 2**20, "b": 0}, {"c": "it died"}
    cells = [speed.cell(found, column) for column in "abcd"]
    assert cells == ["12.5 (12.0 to 14.1), 3 MiB", "3000.0", "NONE: it died", ""]


def test_a_sample_lasts_as_long_as_is_asked_and_is_of_one_thing() -> None:
    calls: list[float] = []

    def call() -> None:
        calls.append(0.0)
        time.sleep(0.01)

    assert sample(Call(call, number=4), seconds=0.05) >= 0.0025
    assert len(calls) <= 5
    calls.clear()
    sample(Call(call), seconds=0.0)
    assert len(calls) == 1


def test_the_rows_of_a_gpu_and_of_a_cpu() -> None:
    assert names(speed.GPU) == [
        *("training step, batch 16", "training step on kept features, batch 16"),
        *("training step, batch 64", "training step on kept features, batch 64"),
        *("scoring, batch 1", "scoring, batch 16", "scoring, batch 64"),
        "whole category, mvtec_short, 40 epochs, empty cache",
        "whole category, mvtec_short, 40 epochs, warm cache",
        "whole category, mvtec, 200 epochs, empty cache",
        "whole category, mvtec, 200 epochs, warm cache",
        *("metrics of 160 maps", "decoding, one image"),
        *("cold start to first step, empty cache", "cold start to first step, warm cache"),
    ]
    assert names(speed.CPU) == [
        *("training step, batch 4", "training step on kept features, batch 4"),
        *("scoring, batch 1", "scoring, batch 8"),
        *("metrics of 160 maps", "decoding, one image"),
        *("cold start to first step, empty cache", "cold start to first step, warm cache"),
    ]


def test_a_process_that_fails_dies_or_is_late_says_so() -> None:
    runs = "benchmarks.speed.of_runs"
    workers = [
        Worker(Job(runs)),
        Worker(Job(runs, "cold_start", {"backbone": "x", "size": 32, "cache": "warm"})),
        Worker(Job(runs)),
    ]
    try:
        assert workers[0].ask(0) == {}
        assert workers[0].ask(0)[1] == 0
        os.kill(workers[0].process.pid or 0, signal.SIGKILL)
        with pytest.raises(NoAnswerError, match="ended with -9: out of memory"):
            workers[0].ask(0)
        with pytest.raises(NoAnswerError, match="RuntimeError: the run with an empty cache"):
            workers[1].ask(0)
        os.kill(workers[2].process.pid or 0, signal.SIGSTOP)  # else it may answer in no time
        with pytest.raises(NoAnswerError, match="budget"):
            workers[2].ask(0, time.monotonic())
    finally:
        for worker in workers:
            worker.close()


def test_the_process_that_asks_imports_neither_jax_nor_torch() -> None:
    code = "import sys, benchmarks.speed.__main__; print({'jax', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_a_row_on_a_machine_with_few_packages(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    arguments = ("benchmarks.speed", "--cpu", "--tiny", "--only=scoring", f"--json={path}")
    done = command(*arguments, **bare_machine(tmp_path))
    assert done.returncode == 0, done.stderr
    saved = json.loads(path.read_text())
    ((name, row),) = saved["rows"].items()
    assert f"| {name} | " in done.stdout
    assert row["failures"] == {}
    assert all(0 < low <= median <= high for median, low, high in row["seconds"].values())
    assert min(row["peak_bytes"].values()) > 0
    assert row["facts"].keys() == row["seconds"].keys() >= {speed.OWN}
    assert saved["platform"] == "cpu"


def test_each_timed_call_of_rd_jax_runs() -> None:
    from benchmarks.speed import of_jax

    for call, number in (
        of_jax.training_step("tiny", 32, 4),
        of_jax.training_step("tiny", 32, 4, keeps=True),
        of_jax.metrics(4, 32),
        of_jax.decoding(2, 32),
        of_jax.decoding(2, 32, by_pil=True),
    ):
        call()
        assert number >= 1


def test_a_whole_command_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    arguments = {"backbone": "resnet10", "size": 32, "cache": "empty"}
    worker = Worker(Job("benchmarks.speed.of_runs", "cold_start", arguments, warm_up=0))
    try:
        assert worker.ask(0) == {}
        assert worker.ask(0)[0] > 1
    finally:
        worker.close()


def test_the_tuned_baseline_computes_what_the_eager_one_does() -> None:
    torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
    from benchmarks.speed import of_torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of the suite's workers each has one core
    try:
        eager, tuned = (of_torch.training_step("resnet10", 64, 2, t).call for t in (False, True))
        kept = of_torch.training_step("resnet10", 64, 2, True, keeps=True).call
        first = eager()
        assert tuned() == pytest.approx(first, abs=1e-4)
        assert kept() == pytest.approx(first, abs=1e-4)
        assert eager() < first
        scores = [of_torch.scoring("resnet10", 64, 2, t).call() for t in (False, True)]
    finally:
        torch.set_num_threads(num_threads)
    np.testing.assert_allclose(*scores, atol=1e-4)
