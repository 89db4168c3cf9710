"""Ctrl-C and SIGTERM: a training saves what it has, anything else stops at once."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import jax

from rd_jax.system import hosts

logger = logging.getLogger(__name__)

_SECONDS = 5.0  # that a signal to one of several processes may go unheard


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to stop; the message says what was saved."""


def stop_on_sigterm() -> None:
    """From now on SIGTERM raises, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _stop_at_once)


def _stop_at_once(_: int, __: FrameType | None) -> None:
    raise Interrupted("interrupted")


@contextmanager
def deferred(now: Callable[[], float] = time.monotonic) -> Iterator[Callable[..., bool]]:
    """Inside, the first Ctrl-C or SIGTERM only makes should_stop(at_once=False) return True.

    The second one stops at once. Outside of the main thread, where Python handles no signals,
    nothing changes. Several processes all have to call it alike, and stop after a signal to any of
    them: at once, or else when they ask each other, which they do every few seconds of `now`.
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
        yield _asking(lambda: bool(received), now)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _asking(received: Callable[[], bool], now: Callable[[], float]) -> Callable[..., bool]:
    """Whether any process received something, by questions that are `_SECONDS` apart.

    An answer also says after how many calls all ask again, by the first process's clock.
    """
    asked_at, calls, until_next = now(), 0, 1

    def should_stop(at_once: bool = False) -> bool:
        nonlocal asked_at, calls, until_next
        if jax.process_count() == 1:
            return received()
        calls += 1
        if calls < until_next and not at_once:
            return False
        seconds = (now() - asked_at) / calls
        asked_at += seconds * calls
        # At most twice as many as before: what is compiled or evaluated says nothing of the rest.
        calls_to_go = max(1, min(2 * calls, int(_SECONDS / max(seconds, 1e-6))))
        told = hosts.told_by_all(2 * calls_to_go + received())
        calls, until_next = 0, told[0] // 2
        return any(of_process % 2 for of_process in told)

    return should_stop
