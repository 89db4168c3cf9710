"""Time one job in its own process, so that its memory and its failures are its own, too."""

import contextlib
import importlib
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np


class Call(NamedTuple):
    """A function that returns when its work is done, and how many things it does."""

    call: Callable[[], Any]
    number: int = 1


@dataclass(frozen=True)
class Job:
    """The function that prepares a `Call`: MODULE.FUNCTION(**arguments).

    The module also has facts(), which may hold a "platform", and peak_bytes(). The first `warm_up`
    calls are not timed.
    """

    module: str
    function: str = ""  # empty: facts only
    arguments: Mapping[str, Any] = field(default_factory=dict)
    platform: str = ""  # fail on any other platform
    warm_up: int = 2


class NoAnswerError(Exception):
    """The reason in one line why there is no answer."""


class Worker:
    """A process that imports a job's module at once, and prepares when it is first asked."""

    def __init__(self, job: Job):
        context = multiprocessing.get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self.process = context.Process(target=serve, args=(other_end, job), daemon=True)
        self.process.start()
        other_end.close()

    def ask(self, seconds: float, deadline: float | None = None) -> Any:
        """Return facts at first; then (seconds for one thing, peak bytes), timed for `seconds`.

        Raises NoAnswerError if the job fails, or is not done at `deadline` (time.monotonic()).
        """
        try:
            self._pipe.send(seconds)
            left = None if deadline is None else max(0, deadline - time.monotonic())
            answer = self._pipe.recv() if self._pipe.poll(left) else "not done within the budget"
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            answer = f"the process ended with {code}{': out of memory?' if code == -9 else ''}"
        if isinstance(answer, str):
            raise NoAnswerError(answer)
        return answer

    def close(self) -> None:
        """End the process, and all that it started."""
        for kill in (os.killpg, os.kill):  # it has no group before it starts
            with contextlib.suppress(ProcessLookupError):
                kill(self.process.pid or 0, signal.SIGKILL)
        self.process.join()


def serve(pipe: Connection, job: Job) -> None:
    """Answer `Worker.ask`. Let libraries print to standard error."""
    os.setpgid(0, 0)
    os.dup2(2, 1)
    try:
        module = importlib.import_module(job.module)
        facts = module.facts()
        if job.platform and facts["platform"] != job.platform:
            raise RuntimeError(f"it is on {facts['platform']}, and rd_jax on {job.platform}")
        pipe.recv()  # wait: preparing would disturb other measurements
        prepare = getattr(module, job.function) if job.function else lambda: Call(lambda: None)
        call: Call = prepare(**job.arguments)
        for _ in range(job.warm_up):
            call.call()
        pipe.send(facts)
        while True:
            pipe.send((sample(call, pipe.recv()), module.peak_bytes()))
    except Exception as error:  # any error, such as out of memory
        pipe.send(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


def sample(call: Call, seconds: float) -> float:
    """Return the seconds for one thing, timed for `seconds` or for at least one call."""
    start, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - start < seconds:
        call.call()
        calls += 1
    return (time.perf_counter() - start) / (calls * call.number)


def random_images(count: int, size: int) -> np.ndarray:
    """Return uint8 images [N, size, size, 3], the same for all implementations."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def peak_process_bytes() -> int:
    """Return the most memory that this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
