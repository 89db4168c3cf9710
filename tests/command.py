"""The command line as a user meets it: within this process, or in one of its own."""

import io
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from rd_jax import main
from tests import tiny_main

ROOT = Path(__file__).parents[1]
METRICS = (
    "image_auroc", "pixel_auroc", "aupro", "image_ap", "image_f1max", "pixel_ap", "pixel_f1max",
)  # fmt: skip
SMALL = (
    "--config.backbone=tiny", "--config.teacher_weights=random", "--config.image_size=32",
    "--config.batch_size=4", "--config.num_epochs=2", "--config.log_every_steps=2",
)  # fmt: skip
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Done(NamedTuple):
    """What a command left; an unexpected error is raised, and not one of these."""

    returncode: int
    stdout: str
    stderr: str


def training(data_dir: Path, workdir: Path, *more: str) -> tuple[str, ...]:
    """The arguments that train what `data_dir` holds, with the tiny backbone."""
    where = (f"--config.data_dir={data_dir}", "--workdir", str(workdir))
    return ("--config", "mvtec", *where, *SMALL, *more)


def evaluation(workdir: Path, *more: str) -> tuple[str, ...]:
    """The arguments that evaluate what was trained."""
    return ("--config", "mvtec", "--mode", "eval", "--workdir", str(workdir), *more)


def run(*arguments: str) -> Done:
    """`python -m rd_jax.main` in this process, on its devices."""
    return captured(main.main, ["rd_jax.main", *arguments])


def succeeded(*arguments: str) -> Done:
    """`run`, which must end well."""
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return done


def results(folder: Path) -> dict[str, Any]:
    """The results of an evaluation, or of a category over its seeds."""
    return json.loads((folder / "results.json").read_text())


def captured(command: Callable[[list[str]], int], arguments: Sequence[str]) -> Done:
    """Runs a command's function; what it changes in this process is put back."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with _put_back(), redirect_stdout(stdout), redirect_stderr(stderr):
        code = command(list(arguments))
    return Done(code, stdout.getvalue(), stderr.getvalue())


@contextmanager
def _put_back() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in (None, "rd_jax", "absl", "asyncio")]
    levels, handlers = [logger.level for logger in loggers], loggers[0].handlers[:]
    on_signals, hook = [signal.getsignal(number) for number in SIGNALS], sys.unraisablehook
    try:
        with warnings.catch_warnings(), mock.patch.dict(os.environ):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        loggers[0].handlers[:] = handlers
        for number, handler in zip(SIGNALS, on_signals, strict=True):
            signal.signal(number, handler)
        sys.unraisablehook = hook


# Of which each child has all imported already, what else takes seconds, and nothing of JAX used.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.tiny_main"])


class Process:
    """`python -m rd_jax.main` in a process of its own, whose errors can be followed in a file."""

    def __init__(
        self,
        log: Path,
        *arguments: str,
        what: Callable[[Sequence[str]], int] = tiny_main.run,
        **environment: str,
    ):
        self.log, self.out = log, log.with_suffix(".out")
        for path in (self.log, self.out):
            path.write_text("")
        streams = str(self.out), str(self.log)
        given = what, streams, os.environ | environment, arguments
        self.process = _FORKS.Process(target=tiny_main.forked, args=given, daemon=True)
        self.process.start()

    def wait_for(self, text: str) -> None:
        """Return when the process has said this; fail if it ended before."""
        while text not in self.log.read_text():
            assert self.process.is_alive(), self.log.read_text()
            time.sleep(0.05)

    def done(self, timeout: float = 240) -> Done:
        """Wait for the end; a process that does not come to it is killed."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode
        assert code is not None
        return Done(code, self.out.read_text(), self.log.read_text())


def assert_one_line(done: Done, message: str) -> None:
    """The command ended with one error line of a user's mistake."""
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert done.stderr.rstrip().endswith(errors[0])
    assert message in errors[0]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
