"""Several processes agree on when to stop without asking each other at every step."""

import os
import signal

import jax
import numpy as np
import pytest

from rd_jax.system import hosts
from rd_jax.system.interruption import deferred


@pytest.mark.parametrize(
    ("seconds", "num_calls", "least", "most"),
    [(0.02, 10_000, 40, 50), (0.0001, 100_000, 2, 20), (10.0, 20, 20, 20)],
)
def test_they_ask_every_five_seconds_and_a_signal_to_another_one_is_heard_then(
    monkeypatch: pytest.MonkeyPatch, seconds: float, num_calls: int, least: int, most: int
) -> None:
    clock, is_other_stopped, asked_at = 0.0, 0, [0.0]

    def gather(own: np.ndarray) -> np.ndarray:
        asked_at.append(clock)
        return np.stack([own, [0, is_other_stopped]])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", gather)
    with deferred(lambda: clock) as should_stop:
        for _ in range(num_calls):
            clock += seconds
            assert not should_stop()
        assert least <= len(asked_at) - 1 <= most
        assert max(np.diff(asked_at)) <= max(5.0, seconds) + 1e-6
        is_other_stopped, stopped_at = 1, clock
        while not should_stop():
            clock += seconds
        assert clock - stopped_at <= max(5.0, seconds) + 1e-6
        assert should_stop(at_once=True)


def test_the_first_process_says_when_all_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, asked = [], []

    def gather(own: np.ndarray) -> np.ndarray:
        asked.append(len(calls))
        return np.stack([[0, 2 * 7], own])  # this is the second

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", gather)
    with deferred(lambda: 0.0) as should_stop:
        while len(calls) < 22:
            calls.append(1)
            assert not should_stop()
        assert asked == [1, 8, 15, 22]
        os.kill(os.getpid(), signal.SIGTERM)
        assert [should_stop() for _ in range(7)] == [False] * 6 + [True]
        assert should_stop(at_once=True)


def test_one_process_asks_nobody_and_stops_at_the_next_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", None)
    with deferred(lambda: 0.0) as should_stop:
        assert not any(should_stop() for _ in range(100))
        os.kill(os.getpid(), signal.SIGTERM)
        assert should_stop()
