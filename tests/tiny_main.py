"""`rd_jax.main` with the tiny backbones, and with a mishap at a line of its log.

AT=TEXT names the line. There the process waits until the file WAIT_FOR is there, and then sends
itself SIGNAL; each where it is given.
"""

import logging
import os
import signal
import sys
import time

import tests.tiny  # noqa: F401
from rd_jax import main
from rd_jax.system import command

command._check_xla_flags = lambda _: None  # which takes a process; those of the suite are known


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


if "AT" in os.environ:
    logging.getLogger("rd_jax").addHandler(Mishap())
sys.exit(main.main(sys.argv))
