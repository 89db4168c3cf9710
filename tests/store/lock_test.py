"""A training belongs to one run at a time."""

import os
import platform
import re
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from rd_jax.store import lock
from rd_jax.store.lock import claimed, summarising
from rd_jax.store.workdir import Workdir, training_of
from rd_jax.system.errors import UserError
from tests.command import ROOT

HOLD = """
import sys, time
from pathlib import Path
from rd_jax.store.lock import claimed
from rd_jax.store.workdir import training_of
workdir = Path(sys.argv[1])
with claimed(workdir, [training_of(workdir, "weave", 1)]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_process_holds_nothing_and_one_alive_is_named(tmp_path: Path) -> None:
    mine, other = training_of(tmp_path, "weave", 1), training_of(tmp_path, "weave", 2)
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    with process, ExitStack() as stack:
        assert process.stdout
        process.stdout.readline()
        stack.callback(process.kill)
        who = re.escape(
            f"{mine.folder} is being worked on by process {process.pid} on {platform.node()}, si"
        )
        with pytest.raises(UserError, match=who), claimed(tmp_path, [other, mine]):
            pass
        with claimed(tmp_path, [other]):  # which was given back
            pass
        with pytest.raises(UserError, match=who), claimed(tmp_path, [other], whole_categories=True):
            pass
    with claimed(tmp_path, [mine]) as give_back:
        with pytest.raises(UserError, match=f"process {os.getpid()} "), claimed(tmp_path, [mine]):
            pass
        give_back(mine)
        with claimed(tmp_path, [mine]):
            pass


def test_summaries_are_written_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, done = threading.Event(), []
    monkeypatch.setattr(lock.logger, "info", lambda *_: waits.set())

    def write() -> None:
        with summarising(Workdir(tmp_path)):
            done.append("second")

    with summarising(Workdir(tmp_path)):
        second = threading.Thread(target=write)
        second.start()
        assert waits.wait(60)
        done.append("first")
    second.join()
    assert done == ["first", "second"]
