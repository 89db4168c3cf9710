"""Signals that ask to stop: a training saves what it has, anything else stops at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Ctrl-C; kill and the end of a machine; a closed terminal; the warning that Slurm can send.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to stop; the message says what was saved."""


def stop_on_signals() -> None:
    """From now on these signals raise Interrupted. Ignored ones stay so, as nohup wants it."""
    for number in _not_ignored():
        signal.signal(number, _stop_at_once)


def _not_ignored() -> list[signal.Signals]:
    numbers = (getattr(signal, name) for name in _NAMES if hasattr(signal, name))
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def _stop_at_once(_: int, __: FrameType | None) -> None:
    raise Interrupted("interrupted")


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Inside, the first of these signals only makes should_stop() return True.

    The second one stops at once. Outside of the main thread, where Python handles no signals,
    nothing changes.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            _stop_at_once(number, frame)
        received.append(number)
        _tell("interrupted: saving a checkpoint (once more stops at once)\n")

    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, note) for number in (_not_ignored() if is_main else ())}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(text: str) -> None:
    """Write to the log's descriptor, since a handler may interrupt a write to its stream."""
    try:
        os.write(2, text.encode())
    except OSError:  # the terminal was closed: what is still said goes nowhere
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
