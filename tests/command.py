"""The command line as a user meets it: within this process, or in one of its own."""

import io
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from rd_jax import main

ROOT = Path(__file__).parents[1]
METRICS = (
    "image_auroc", "pixel_auroc", "aupro", "image_ap", "image_f1max", "pixel_ap", "pixel_f1max",
)  # fmt: skip
SMALL = (
    "--config.backbone=tiny", "--config.teacher_weights=random", "--config.image_size=32",
    "--config.batch_size=4", "--config.num_epochs=2", "--config.log_every_steps=2",
)  # fmt: skip


class Done(NamedTuple):
    """What a command left; an unexpected error is raised, and not one of these."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str) -> Done:
    """`python -m rd_jax.main` in this process, on its devices."""
    return captured(main.main, ["rd_jax.main", *arguments])


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
    on_sigterm, hook = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    try:
        with warnings.catch_warnings(), mock.patch.dict(os.environ):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        loggers[0].handlers[:] = handlers
        signal.signal(signal.SIGTERM, on_sigterm)
        sys.unraisablehook = hook


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """`python -m rd_jax.main` in a process of its own."""
    command = [sys.executable, "-W", "error", "-m", "tests.tiny_main", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | environment
    )


def assert_one_line(done: Done | subprocess.CompletedProcess, message: str) -> None:
    """The command ended with one error line of a user's mistake."""
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert done.stderr.rstrip().endswith(errors[0])
    assert message in errors[0]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
