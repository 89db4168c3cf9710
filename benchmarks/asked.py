"""A process of `benchmarks.speed_worker`, seen from the one that asks it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any


class NoAnswerError(Exception):
    """Says in one line why there is no answer."""


class Asked:
    """Started when it is first asked, and anew when it is asked after it failed."""

    def __init__(self, kind: str, is_cpu: bool, environment: Mapping[str, str]):
        self._command = [sys.executable, "-m", "benchmarks.speed_worker", kind]
        self._command += ["--cpu"] if is_cpu else []
        self._environment = environment
        self._process: subprocess.Popen | None = None

    def start(self) -> subprocess.Popen:
        """The process, which may be still importing."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | self._environment,
                start_new_session=True,  # so that what it starts can be ended with it
            )
        return self._process

    def ask(self, deadline: float | None = None, **request: Any) -> dict[str, Any]:
        """The answer. Raises NoAnswerError without one by the deadline, of time.monotonic()."""
        process = self.start()
        assert process.stdin
        assert process.stdout
        line = ""
        with _killed_at(deadline, process), contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=process.stdin, flush=True)
            line = process.stdout.readline()
        if line:
            answer = json.loads(line)
        elif deadline is not None and time.monotonic() >= deadline:
            answer = {"failed": "not done within the budget"}
        else:
            answer = {"failed": f"the process {_end_of(process)}"}
        if "failed" in answer:
            self.close()
            raise NoAnswerError(answer["failed"])
        return answer

    def close(self) -> None:
        """Ends the process, and all that it started."""
        process, self._process = self._process, None
        if process:
            _kill(process)
            # Closes its pipes, of which one may hold what it died before reading, and waits.
            with contextlib.suppress(BrokenPipeError), process:
                pass


@contextlib.contextmanager
def _killed_at(deadline: float | None, process: subprocess.Popen) -> Iterator[None]:
    if deadline is None:
        yield
        return
    timer = threading.Timer(max(0, deadline - time.monotonic()), _kill, [process])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _end_of(process: subprocess.Popen) -> str:
    code = process.wait()
    if code >= 0:
        return f"ended with {code}"
    hint = ": out of memory?" if code == -signal.SIGKILL else ""
    return f"died of {signal.Signals(-code).name}{hint}"
