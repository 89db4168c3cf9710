"""`rd_jax.main` with the tiny backbones, without figures, and with a mishap at a line of its log.

Figures are left out where an environment variable says so, as conftest.py does.
AT=TEXT names the line. There the process waits until the file WAIT_FOR is there, and then sends
itself SIGNAL; each where it is given. SILENCE is that of hosts.py.
"""

import atexit
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence

import jax

import tests.tiny  # noqa: F401
from rd_jax import main
from rd_jax.report import figures
from rd_jax.system import command, hosts

NO_FIGURES = "RD_JAX_TESTS_NO_FIGURES"
WRITE_FIGURES = figures.write_figures


def no_figures(*_: object) -> None:
    """In the place of `write_figures`."""


if NO_FIGURES in os.environ:
    figures.write_figures = no_figures


class Mishap(logging.Handler):
    """What befalls the process, once."""

    def emit(self, record: logging.LogRecord) -> None:
        if os.environ["AT"] in record.getMessage():
            logging.getLogger("rd_jax").removeHandler(self)
            print(record.getMessage(), file=sys.stderr, flush=True)  # the log's turn comes later
            deadline = time.monotonic() + 200  # in case that the test was killed
            while not os.path.exists(os.environ.get("WAIT_FOR", "/")):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            if "SIGNAL" in os.environ:
                os.kill(os.getpid(), signal.Signals[os.environ["SIGNAL"]])


def run(arguments: Sequence[str]) -> int:
    """The exit code."""
    hosts._SILENCE = int(os.environ.get("SILENCE", hosts._SILENCE))
    command._check_xla_flags = lambda _: None  # which takes a process; the suite's are known
    if "AT" in os.environ:
        logging.getLogger("rd_jax").addHandler(Mishap())
    return main.main(["rd_jax.main", *arguments])


def forked(
    what: Callable[[Sequence[str]], int],
    streams: tuple[str, str],
    environment: Mapping[str, str],
    arguments: Sequence[str],
) -> None:
    """Become a process of its own, which a fork is that has used nothing of JAX yet."""
    for i, name in enumerate(streams, 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), i)
    os.environ.clear()
    os.environ.update(environment)
    warnings.simplefilter("error")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts the tests may ignore it
    jax.config.update("jax_num_cpu_devices", int(os.environ["JAX_NUM_CPU_DEVICES"]))
    try:
        sys.exit(what(arguments))
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
