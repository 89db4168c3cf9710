"""Locks: only one process at a time writes a training, a run's summary, or predictions.

A lock ends with the process that holds it, even if that is killed.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from rd_jax.store.workdir import Training, Workdir, moved_aside
from rd_jax.system.errors import UserError
from rd_jax.system.files import writing


def lock_of(training: Training) -> Path:
    """Return the file that a process locks while it works on a training."""
    return Workdir(training.workdir).locks / training.name / f"{training.seed}.lock"


def locked(training: Training) -> AbstractContextManager[bool]:
    """Hold a training's lock. Yield False if another process works on it."""
    return held(lock_of(training))


def set_aside(workdir: Path, names: Iterable[str]) -> dict[str, Path]:
    """Move the folders of these trainings and categories into replaced-DATE; return new places.

    Raise UserError if another process works on one of them, with any seed. Raise UserError for an
    impossible name before a file is made: names may come from a checkpoint of a stranger.
    """
    trainings = [Workdir(workdir).training(name) for name in names]
    kept = workdir / f"replaced-{datetime.now():%Y%m%d-%H%M%S}"
    with ExitStack() as stack:
        for training in trainings:
            own = lock_of(training)
            for path in {own, *own.parent.glob("*.lock")}:
                if not stack.enter_context(held(path)):
                    raise UserError(
                        f"another process works on {training.folder}: wait for it to end, or "
                        "choose another --workdir"
                    )
        there = [training.folder for training in trainings if os.path.lexists(training.folder)]
        return {folder.name: moved_aside(folder, kept) for folder in there}


@contextmanager
def alone(training: Training) -> Iterator[None]:
    """Hold a training's lock. Raise UserError if another process works on it."""
    with locked(training) as is_free:
        if not is_free:
            raise UserError(f"another process works on {training.folder}: wait for it to end")
        yield


@contextmanager
def held(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold the lock on a file. If another process has it, yield False, or `wait` for it."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    # A soft lock is a file that exists or not. It would outlive a killed process.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        pass
    except OSError as error:
        raise UserError(
            f"cannot lock {path} ({error.strerror}): choose a folder that this user can write, on "
            "a file system that is mounted with locks (flock)"
        ) from error
    try:
        yield lock.is_locked
    finally:
        lock.release()
