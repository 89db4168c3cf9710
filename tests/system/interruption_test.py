"""A signal lets a training save what it has; a second one, or one elsewhere, stops at once."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rd_jax.system.interruption import Interrupted, deferred, stop_on_signals

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """Let SIGHUP be heard, whatever started the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_the_second_stops(
    capfd: pytest.CaptureFixture, number: signal.Signals
) -> None:
    stop_on_signals()
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Interrupted, match="interrupted"), deferred() as should_stop:  # noqa: PT012
        assert not should_stop()
        os.kill(os.getpid(), number)
        assert should_stop()
        assert should_stop()
        said = "interrupted: saving a checkpoint (once more stops at once)\n"
        assert capfd.readouterr().err == said
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("nothing stopped")
    assert [signal.getsignal(each) for each in SIGNALS] == before
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def test_ignored_signals_stay_ignored() -> None:
    for number in (signal.SIGHUP, signal.SIGINT):  # by nohup, and by a shell's &
        signal.signal(number, signal.SIG_IGN)
    stop_on_signals()
    with deferred() as should_stop:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGINT)
        assert not should_stop()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert should_stop()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


# Alone, since a package around it takes seconds to import.
MODULE = Path(__file__).parents[2] / "rd_jax" / "system" / "interruption.py"
# Whoever starts the tests may ignore SIGHUP, as nohup does.
IMPORT = """
import runpy, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)
deferred = runpy.run_path(sys.argv[1])['deferred']
"""


def test_a_closed_terminal_keeps_nothing_from_being_saved(tmp_path: Path) -> None:
    code = f"""
import time
{IMPORT}
with deferred() as should_stop:
    print("ready", flush=True)
    deadline = time.monotonic() + 60
    while not should_stop() and time.monotonic() < deadline:
        time.sleep(0.01)
    print("to a terminal that is gone", flush=True)
    print("and another", file=sys.stderr, flush=True)
    open(sys.argv[2], "w").write("saved" if should_stop() else "late")
"""
    terminal, end = os.openpty()
    command = [sys.executable, "-c", code, str(MODULE), str(tmp_path / "x")]
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end) as process:
        os.close(end)
        said = b""
        while b"ready" not in said:
            said += os.read(terminal, 100)
        os.close(terminal)
        process.send_signal(signal.SIGHUP)
    assert process.returncode == 0
    assert (tmp_path / "x").read_text() == "saved"


def test_a_signal_may_come_while_the_log_is_written() -> None:
    code = f"""
import logging
{IMPORT}
logging.basicConfig(format="%(message)s")
while True:
    with deferred() as should_stop:
        logging.warning("inside")
        while not should_stop():
            logging.warning("step")
"""
    command, lines = [sys.executable, "-c", code, str(MODULE)], []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            lines.append(line)
            if line == "inside\n":
                process.send_signal(signal.SIGUSR1)
            if line == "inside\n" and lines.count(line) > 50:
                break
        process.kill()
    # A signal may come before the first step.
    expected = {"inside", "step", "interrupted: saving a checkpoint (once more stops at once)"}
    assert {"step", *"".join(lines).splitlines()} == expected
