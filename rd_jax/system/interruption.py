"""Signals that ask to stop: a training saves what it has, anything else stops at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Ctrl-C; kill and the end of a machine; a closed terminal; the warning that Slurm can send.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to stop; the message says what was saved."""


def stop_on_signals() -> None:
    """From now on these signals raise Interrupted."""
    _handle(_stop_at_once)


def _handle(handler: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, Any]:
    """Let it handle the signals and return what did. Ignored ones stay so, as nohup wants it."""
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def _stop_at_once(_: int, __: FrameType | None) -> None:
    raise Interrupted("interrupted")


@contextmanager
def deferred(what_follows: str = "saving a checkpoint") -> Iterator[Callable[[], bool]]:
    """Inside, the first of these signals only makes should_stop() return True.

    It says what follows. The second one stops at once.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield lambda: False
        return
    received: list[int] = []
    line = f"interrupted: {what_follows} (once more stops at once)\n".encode()

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            _stop_at_once(number, frame)
        received.append(number)
        try:  # not to the log's stream, a write to which may be interrupted by this
            os.write(2, line)
        except OSError:  # the terminal was closed: what is still said goes nowhere
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)

    before = _handle(note)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
