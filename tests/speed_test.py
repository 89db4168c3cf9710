"""The benchmark measures what it says."""

from functools import partial

import numpy as np
import pytest

from benchmarks.speed import Timing, table, timed, timing
from tests.reference_weights import draw_images


def test_timings_are_median_and_quartiles_of_calls_after_the_first_two() -> None:
    assert timing([1.0, 9.0, 3.0, 2.0, 4.0]) == (3.0, 2.0, 4.0)
    calls: list[str] = []
    found = timed({name: partial(calls.append, name) for name in "ab"}, repeats=3)
    assert calls == list("ababababab")
    assert list(found) == ["a", "b"]


def test_the_table_has_a_column_for_each_implementation() -> None:
    value = Timing(0.0125, 0.012, 0.0141)
    text = table({"step": {"rd_jax": value, "PyTorch eager": value}, "metrics": {"rd_jax": value}})
    assert "| milliseconds | rd_jax | PyTorch eager |" in text
    assert "| metrics | 12.5 (12.0 to 14.1) |  |" in text


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
