"""The comparison of dtypes runs on a machine with few packages, and within its budget."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.recipe import precision
from rd_jax.data.synthetic import write_category
from rd_jax.weights.teacher import load_teacher
from tests.bare import bare_machine
from tests.reference_weights import state_dict_of
from tests.speed_test import command


def test_all_trainings_on_a_machine_with_few_packages(tmp_path: Path) -> None:
    path, weights = tmp_path / "precision.json", tmp_path / "weights.npz"
    write_category(tmp_path, num_train=8, num_test=2, size=32)
    np.savez(weights, **state_dict_of(load_teacher("resnet10", "random")))
    done = command(
        *("benchmarks.recipe.precision", f"--data={tmp_path}", f"--weights={weights}"),
        *("--categories", "weave", "--backbone=resnet10", "--image_size=32", "--epochs=1"),
        f"--json={path}",
        JAX_PLATFORMS="cpu",
        **bare_machine(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["trainings"]
    assert [(row["dtype"], row["seed"]) for row in rows] == [
        (dtype, seed) for seed in (0, 1, 2) for dtype in ("bfloat16", "float32")
    ]
    for row in rows:
        assert row["metrics"].keys() > {*precision.NAMES}
        assert f"| weave | {row['dtype']} | {row['seed']} | " in done.stdout
    for dtype in precision.DTYPES:
        (mean,) = (line for line in done.stdout.splitlines() if f"{dtype} | mean of 3 |" in line)
        values = [row["metrics"]["aupro"] for row in rows if row["dtype"] == dtype]
        assert f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}" in mean


def test_trainings_that_would_not_end_in_time_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: Iterator[int] = itertools.count(step=10)  # each training takes 10 seconds
    monkeypatch.setattr(precision.time, "monotonic", lambda: next(ticks))
    splits: list[Any] = [SimpleNamespace(name="weave")]
    found = list(precision.trainings(splits, [0, 1, 2], lambda *_: {"aupro": 1.0}, 65.0))
    assert [row["metrics"] is not None for row in found] == [True, True, True, False, False, False]
