"""Ctrl-C and SIGTERM: a training saves what it has, anything else stops at once."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to stop; the message says what was saved."""


def stop_on_sigterm() -> None:
    """From now on SIGTERM raises, as Ctrl-C does; of several processes JAX handles it."""
    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, _stop_at_once)


def _stop_at_once(_: int, __: FrameType | None) -> None:
    raise Interrupted("interrupted")


@contextmanager
def deferred() -> Iterator[Callable[[int], bool]]:
    """Inside, the first Ctrl-C or SIGTERM only makes the given function of a step return True.

    The second one stops at once. Outside of the main thread, where Python handles no signals,
    nothing changes. Several processes stop at the same step, after a SIGTERM to any of them.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            _stop_at_once(number, frame)
        received.append(number)
        logger.warning("interrupted: saving a checkpoint (once more stops at once)")

    if threading.current_thread() is not threading.main_thread():
        yield lambda _: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda _: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
