"""Who writes what: each training, the summaries of a run, and predictions, by one process alone.

A lock ends with the process that holds it, however that ends.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rd_jax.store.workdir import Training, Workdir
from rd_jax.system.errors import UserError
from rd_jax.system.files import writing


def lock_of(training: Training) -> Path:
    """Return the path of the file that is locked by whoever works on a training."""
    return Workdir(training.workdir).locks / training.name / f"{training.seed}.lock"


def locked(training: Training) -> AbstractContextManager[bool]:
    """Hold a training inside. Yield False if another process works on it."""
    return held(lock_of(training))


@contextmanager
def all_locked(workdir: Path, names: Iterable[str]) -> Iterator[None]:
    """Hold all trainings of these names inside, of whatever seed.

    Raise UserError if another process works on one of them, or for an impossible name, before a
    file is made: names may come from a checkpoint, which may be anybody's.
    """
    with ExitStack() as stack:
        for own in [lock_of(Workdir(workdir).training(name)) for name in names]:
            for path in {own, *own.parent.glob("*.lock")}:
                if not stack.enter_context(held(path)):
                    raise UserError(
                        f"another process works on {workdir / own.parent.name}: wait for that to "
                        "end, or choose another --workdir"
                    )
        yield


def summarising(workdir: Path) -> AbstractContextManager[bool]:
    """Read results and write their summaries inside, one process after the other."""
    return held(Workdir(workdir).locks / ".summaries", wait=True)


@contextmanager
def held(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold the lock on a file inside. Yield False if another process has it, or else `wait`."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    # A soft lock, as a file that is there or not, would outlive a killed process.
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
