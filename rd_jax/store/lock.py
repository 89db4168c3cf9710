"""Who writes what: each training, the summaries of a run, and predictions, by one process alone.

A lock ends with the process that holds it, however that ends.
"""

import errno
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rd_jax.store.workdir import Training, Workdir
from rd_jax.system.errors import UserError
from rd_jax.system.files import writing

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


def locked(workdir: Path, training: Training) -> AbstractContextManager[bool]:
    """Hold a training inside. Yield False if another process works on it."""
    return held(Workdir(workdir).lock(training))


@contextmanager
def all_locked(workdir: Path, names: Iterable[str]) -> Iterator[None]:
    """Hold all trainings of these names inside, of whatever seed.

    Raise UserError if another process works on one of them.
    """
    run = Workdir(workdir)
    with ExitStack() as stack:
        for name in names:
            own = run.lock(run.training(name))
            for path in {own, *own.parent.glob("*.lock")}:
                if not stack.enter_context(held(path)):
                    raise UserError(
                        f"another process works on {workdir / name}: wait for that to end, or "
                        "choose another --workdir"
                    )
        yield


@contextmanager
def summarising(workdir: Path) -> Iterator[None]:
    """Read results and write their summaries inside, one process after the other."""
    with held(Workdir(workdir).locks / ".summaries", wait=True):
        yield


@contextmanager
def held(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold the lock on a file inside. Yield False if another process has it, or else `wait`."""
    # A soft lock, as a file that is there or not, would outlive a killed process.
    lock = FileLock(path, fallback_to_soft=False)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            pass
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise UserError(
                f"cannot lock {path}: its file system has no locks ({error.strerror}): mount it "
                "with flock, or choose a folder on another one"
            ) from error
    try:
        yield lock.is_locked
    finally:
        lock.release()
