"""Ctrl-C and SIGTERM: a training saves what it has, anything else stops at once."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rd_jax.system import hosts

logger = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to stop; the message says what was saved."""


def stop_on_sigterm() -> None:
    """From now on SIGTERM raises, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _stop_at_once)


def _stop_at_once(_: int, __: FrameType | None) -> None:
    raise Interrupted("interrupted")


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C or SIGTERM only makes the given function return True.

    The second one stops at once. Outside of the main thread, where Python handles no signals,
    nothing changes. Of several processes all have to ask, and stop after a signal to any of them.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            _stop_at_once(number, frame)
        received.append(number)
        logger.warning("interrupted: saving a checkpoint (once more stops at once)")

    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield lambda: not hosts.all_agree(not received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
