"""Signals that ask to stop: a training saves a checkpoint, other commands stop at once."""

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
    """Let these signals raise Interrupted from now on."""
    _handle(_stop_at_once)


def _handle(handler: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, Any]:
    """Set a handler and return the earlier ones. Ignored signals stay ignored, for nohup."""
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def _stop_at_once(_: int, __: FrameType | None) -> None:
    raise Interrupted("interrupted")


@contextmanager
def deferred(what_follows: str = "saving a checkpoint") -> Iterator[Callable[[], bool]]:
    """Yield should_stop(), which returns True after the first of these signals.

    The first signal prints what follows. The second one stops at once.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one gets signals
        yield lambda: False
        return
    received: list[int] = []
    line = f"interrupted: {what_follows} (once more stops at once)\n".encode()

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            _stop_at_once(number, frame)
        received.append(number)
        try:  # not to the log's stream: the signal may have interrupted a write to it
            os.write(2, line)
        except OSError:  # the terminal was closed: drop further output
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)

    before = _handle(note)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
