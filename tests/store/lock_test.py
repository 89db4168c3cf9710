"""A training belongs to one process at a time."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rd_jax.store import lock
from rd_jax.store.lock import held, lock_of, locked, set_aside
from rd_jax.store.workdir import Workdir
from rd_jax.system.errors import UserError

# Without this package, whose import takes seconds: the lock is what the system knows.
HOLD = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def held_elsewhere(path: Path) -> Iterator[subprocess.Popen]:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.kill()


def test_a_training_is_free_once_the_process_that_holds_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Workdir(tmp_path)
    mine, other = run.training("weave", 1), run.training("weave", 2)
    with held_elsewhere(lock_of(mine)):
        with locked(mine) as is_mine, locked(other) as is_other_mine:
            assert (is_mine, is_other_mine) == (False, True)
        with pytest.raises(UserError, match=f"another process works on {tmp_path / 'weave'}: wait"):
            set_aside(tmp_path, ["cloth", "weave"])
        assert set_aside(tmp_path, ["cloth"]) == {}

    def moved(folder: Path, kept: Path) -> Path:
        with locked(mine) as is_mine, locked(other) as is_other_mine:
            assert (is_mine, is_other_mine) == (False, False)
        return kept / folder.name

    monkeypatch.setattr(lock, "moved_aside", moved)
    mine.folder.mkdir(parents=True)
    assert list(set_aside(tmp_path, ["cloth", "weave"])) == ["weave"]
    with locked(mine) as is_mine:
        assert is_mine


def test_a_name_that_leads_elsewhere_makes_no_file_there(tmp_path: Path) -> None:
    """The names are those of a checkpoint's categories."""
    with pytest.raises(UserError, match=r"category '\.\./\.\./x'"):
        set_aside(tmp_path / "r", ["../../x"])
    assert not any(tmp_path.iterdir())


def test_summaries_are_written_one_after_the_other(tmp_path: Path) -> None:
    path, done = Workdir(tmp_path).locks / ".summaries", []

    def write() -> None:
        with held(path, wait=True):
            done.append("second")

    second = threading.Thread(target=write)
    with held(path, wait=True):
        second.start()
        second.join(0.2)
        done.append("first")
    second.join()
    assert done == ["first", "second"]


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    path = tmp_path / "a" / ".lock"
    with pytest.raises(
        UserError, match=rf"cannot lock {path} \({os.strerror(number)}\): choose a folder .*flock"
    ):
        held(path).__enter__()
