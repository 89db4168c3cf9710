"""The benchmark measures what it says, on machines with few packages, and loses no figure."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.asked import Asked, NoAnswerError
from benchmarks.implementation import Call, Implementation
from benchmarks.speed import Measured, Timing, heading, measure, print_row, timing
from benchmarks.speed_rows import CPU, GPU, TINY, Job, Row, row_groups
from benchmarks.speed_worker import sample, serve
from tests.bare import bare_machine
from tests.command import ROOT
from tests.reference_weights import draw_images

TORCH = {"PyTorch eager": "eager"}
ONE_DEVICE = {"JAX_NUM_CPU_DEVICES": "1", "OMP_NUM_THREADS": "1"}


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | ONE_DEVICE | environment,
    )


def names(sizes: Any) -> list[str]:
    return [row.name for group in row_groups(sizes, "resnet10", {}) for row in group]


class Answering:
    """Stands for a process: what it is asked is written down, and some of it fails."""

    def __init__(self, log: list[str], name: str, fails_at: str = ""):
        self.log, self.name, self.fails_at = log, name, fails_at

    def ask(self, _: float | None = None, **request: Any) -> dict[str, Any]:
        what = next(iter(request))
        self.log.append(f"{self.name} {what}")
        if what == self.fails_at:
            raise NoAnswerError("out of memory")
        return {"seconds": 2.0, "peak_bytes": 2**20, "is_exact": True}


def measured(fails_at: str = "", deadline: float | None = None) -> tuple[Measured, list[str]]:
    log: list[str] = []
    processes: Mapping[str, Any] = {"a": Answering(log, "a", fails_at), "b": Answering(log, "b")}
    jobs = {name: Job(name, "step", {}) for name in "ab"}
    row = Row("step", jobs, repeats=2, has_memory=True)
    return measure(row, processes, 0.0, deadline), log


def test_timings_are_median_and_quartiles() -> None:
    assert timing([1.0, 9.0, 3.0, 2.0, 4.0]) == (3.0, 2.0, 4.0)
    assert timing([5.0]) == (5.0, 5.0, 5.0)


def test_a_sample_lasts_as_long_as_is_asked_and_is_of_one_thing() -> None:
    calls: list[float] = []

    def call() -> None:
        calls.append(0.0)
        time.sleep(0.01)

    assert 0.0025 <= sample(Call(call, number=4), seconds=0.05) < 0.01
    assert 2 <= len(calls) <= 5
    calls.clear()
    sample(Call(call), seconds=0.0)
    assert len(calls) == 1


def test_columns_take_turns() -> None:
    found, log = measured()
    assert log[:2] == ["a prepare", "b prepare"]
    assert log[2:6] == ["a sample", "b sample"] * 2
    assert found.timings == {"a": (2.0, 2.0, 2.0), "b": (2.0, 2.0, 2.0)}
    assert found.peaks["b"] == (2**20, True)


@pytest.mark.parametrize("fails_at", ["prepare", "sample"])
def test_a_column_that_fails_is_lost_alone(fails_at: str) -> None:
    found, log = measured(fails_at)
    assert found.failures == {"a": "out of memory"}
    assert list(found.timings) == ["b"]
    assert log.count("b sample") == 2


def test_nothing_is_asked_when_the_budget_is_spent() -> None:
    found, log = measured(deadline=time.monotonic())
    assert not log
    assert not found.timings
    assert found.failures.keys() == {"a", "b"}


def test_a_row_is_a_line_with_a_cell_for_each_column(capsys: pytest.CaptureFixture) -> None:
    value = Timing(0.0125, 0.012, 0.0141)
    jobs = {"rd_jax": Job("rd_jax", "step", {})}
    found = Measured({"rd_jax": value}, {"rd_jax": (3 * 2**20, False)}, {"eager": "it died"})
    print_row(Row("step", jobs, 2), found, ["rd_jax", "eager", "tuned"])
    assert capsys.readouterr().out.splitlines() == [
        "| step | 12.5 (12.0 to 14.1) | NONE: it died |  |",
        "| step: peak MiB | at most 3 |  |  |",
    ]


def test_another_kind_of_device_is_named() -> None:
    assert heading("PyTorch", {"platform": "gpu"}, "gpu") == "PyTorch"
    assert "NOT MEASURED, since it is on CPU" in heading("PyTorch", {"platform": "cpu"}, "gpu")
    assert "FAILED" in heading("PyTorch", {"failed": "no libcuda"}, "gpu")


def test_the_rows_of_a_gpu_and_of_a_cpu() -> None:
    assert names(GPU) == [
        *("training step, batch 16", "training step, batch 64"),
        *("scoring, batch 1", "scoring, batch 16", "scoring, batch 64", "metrics of 160 maps"),
        "whole category, 200 epochs, empty cache",
        "whole category, 200 epochs, warm cache",
        "decoding, one image",
        *("cold start to first step, empty cache", "cold start to first step, warm cache"),
    ]
    assert names(CPU) == [
        *("training step, batch 4", "scoring, batch 1", "scoring, batch 8"),
        *("metrics of 160 maps", "decoding, one image"),
        *("cold start to first step, empty cache", "cold start to first step, warm cache"),
    ]
    assert len(names(TINY)) == len(names(GPU))


def test_memory_is_that_of_a_row_if_it_rose_in_it() -> None:
    memory = [10, 30, 30, 30]  # before, at the end of a row, after it is freed, and again

    def held(call: Callable[[], int]) -> list[dict[str, Any]]:
        answers = io.StringIO()
        requests = [{"prepare": "step", "arguments": {}, "warm_up": 1}, {"release": True}]
        lines = map(json.dumps, [*requests, {"release": True}])
        serve(Implementation({}, {"step": lambda: Call(call)}, call), lines, answers)
        return [json.loads(line) for line in answers.getvalue().splitlines()]

    assert held(partial(max, memory)) == [
        {},
        {"peak_bytes": 30, "is_exact": False},
        {"peak_bytes": 30, "is_exact": False},
    ]
    rising = iter([10, 0, 30, 30, 30, 30])
    assert held(lambda: next(rising))[1:] == [
        {"peak_bytes": 30, "is_exact": True},
        {"peak_bytes": 30, "is_exact": False},
    ]


def test_a_process_that_died_says_so_and_is_started_anew() -> None:
    asked = Asked("runs", True, {})
    try:
        assert asked.ask(facts=True) == {}
        os.killpg(asked.start().pid, signal.SIGKILL)
        with pytest.raises(NoAnswerError, match="died of SIGKILL: out of memory"):
            asked.ask(facts=True)
        with pytest.raises(NoAnswerError, match="KeyError"):
            asked.ask(prepare="nothing", arguments={}, warm_up=0)
        with pytest.raises(NoAnswerError, match="budget"):
            asked.ask(time.monotonic(), facts=True)
        assert asked.ask(facts=True) == {}
    finally:
        asked.close()


def test_the_process_that_asks_imports_neither_jax_nor_torch() -> None:
    code = "import sys, benchmarks.speed; sys.exit({'jax', 'torch'} & {*sys.modules} != set())"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_all_rows_of_a_gpu_on_a_machine_with_few_packages(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    arguments = ("benchmarks.speed", "--cpu", "--tiny", f"--json={path}")
    done = command(*arguments, **bare_machine(tmp_path))
    assert done.returncode == 0, done.stderr
    saved = json.loads(path.read_text())
    assert list(saved["rows"]) == names(TINY)
    for name, row in saved["rows"].items():
        assert f"| {name} | " in done.stdout
        if name.endswith("cache"):  # of runs, which need more
            assert "No module named" in row["failures"]["rd_jax"] or "warm cache" in name
        else:
            assert row["failures"] == {}
            assert all(value["median"] > 0 for value in row["seconds"].values())
            assert "rd_jax" in row["seconds"]
    for name in names(TINY)[:5]:
        row = saved["rows"][name]
        assert row["seconds"].keys() == row["peak_bytes"].keys() == saved["implementations"].keys()
    assert "rd_jax: platform cpu, device 1 x " in done.stdout


def test_whole_runs_with_a_cache_and_without(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    done = command("benchmarks.speed", "--cpu", "--tiny", "--only=cache", f"--json={path}")
    rows = json.loads(path.read_text())["rows"]
    assert list(rows) == [name for name in names(TINY) if "cache" in name], done.stderr
    assert all(row["failures"] == {} for row in rows.values()), done.stderr


def test_the_tuned_baseline_computes_what_the_eager_one_does() -> None:
    pytest.importorskip("torch", reason="the extra `parity` is not installed")
    from benchmarks import torch_baseline

    images = draw_images(4, 64)
    eager, tuned = (
        torch_baseline.make_train_step("resnet18", "cpu", tuned=t) for t in (False, True)
    )
    first = eager(images)
    assert tuned(images) == pytest.approx(first, abs=1e-4)
    assert eager(images) < first
    scores = [torch_baseline.make_scorer("resnet18", "cpu", t)(images) for t in (False, True)]
    np.testing.assert_allclose(*scores, atol=1e-4)
