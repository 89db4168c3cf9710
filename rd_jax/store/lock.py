"""Who writes into the folder of a run: for each training one run alone, be it of several processes.

A lock ends with the process that holds it, however that ends.
"""

import logging
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from rd_jax.store.rows import read_json, write_json
from rd_jax.store.workdir import Training, Workdir
from rd_jax.system import hosts
from rd_jax.system.errors import UserError
from rd_jax.system.files import check_writable, writing

logger = logging.getLogger(__name__)


@contextmanager
def claimed(
    workdir: Path, trainings: Sequence[Training], whole_categories: bool = False
) -> Iterator[Callable[[Training], None]]:
    """Inside, this run alone works on these trainings, or on all those of their categories.

    Makes the workdir; yields what gives a training back before the end. Raises UserError if
    something there cannot be written to, if it is not the same folder for all processes, or if
    another run works on one of the trainings.
    """
    run = Workdir(workdir)
    with hosts.together():
        with writing(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
        check_writable(workdir)
    if not hosts.all_see(workdir):
        raise UserError(
            f"--workdir {workdir} is not the same folder for all processes: choose one on a file "
            "system that they share"
        )
    with ExitStack() as held:
        locks = {}
        with hosts.together():
            if whole_categories:
                others = [other for t in trainings for other in run.begun(t.category)]
                trainings = list(dict.fromkeys([*trainings, *others]))
            for training in trainings if hosts.is_first() else ():  # for all processes
                locks[training] = lock = take(run, training)
                held.callback(lock.release)
            for folder in run.written_to(trainings):
                check_writable(folder)
        yield lambda training: locks[training].release() if locks else None


def take(run: Workdir, training: Training) -> FileLock:
    """The lock of a training, held by this process. Raises UserError that says who else has it."""
    path = run.lock(training)
    holder, lock = path.with_suffix(".json"), _lock(path)
    with writing(path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            facts = read_json(holder)
            who = "process {process} on {host}, since {since}" if facts else "another"
            raise UserError(
                f"{training.folder} is being worked on by {who.format_map(facts)}: wait for that "
                "to end, or choose another --workdir"
            ) from None
    since = datetime.now().isoformat(" ", "seconds")
    write_json(holder, {"process": os.getpid(), "host": platform.node(), "since": since})
    return lock


@contextmanager
def summarising(run: Workdir) -> Iterator[None]:
    """Inside, no other run writes what is said of all trainings; waits for one that does."""
    path = run.locks / ".summaries"  # which no category is called
    lock = _lock(path)
    with writing(path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("waiting for another run, which writes the results in %s", run.folder)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _lock(path: Path) -> FileLock:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)
