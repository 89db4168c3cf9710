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


def check_workdir(workdir: Path, trainings: Sequence[Training]) -> None:
    """Makes the workdir. Raises UserError if something of these trainings cannot be written to.

    And if it is not the same folder for all processes.
    """
    with hosts.together():
        with writing(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
        check_writable(workdir)
    if not hosts.all_see(workdir):
        raise UserError(
            f"--workdir {workdir} is not the same folder for all processes: choose one on a file "
            "system that they share"
        )
    with hosts.together():
        for folder in Workdir(workdir).written_to(trainings):
            check_writable(folder)


@contextmanager
def claimed(
    workdir: Path, trainings: Sequence[Training], whole_categories: bool = False
) -> Iterator[Callable[[Training], None]]:
    """Inside, this run alone works on these trainings, or on all those of their categories.

    Yields what gives a training back before the end. Raises UserError as `check_workdir`, or if
    another run works on one of the trainings.
    """
    run = Workdir(workdir)
    check_workdir(workdir, trainings)
    with ExitStack() as held:
        locks = {}
        with hosts.together():
            if whole_categories:
                others = [other for t in trainings for other in run.begun(t.category)]
                trainings = list(dict.fromkeys([*trainings, *others]))
            for training in trainings if hosts.is_first() else ():  # for all processes
                locks[training] = lock = take(run, training)
                held.callback(lock.release)
        yield lambda training: locks[training].release() if locks else None


@contextmanager
def first_free(
    workdir: Path, choices: Sequence[Sequence[Training]], begin: Callable[[int], None]
) -> Iterator[int | None]:
    """Inside, this run alone works on the first of the choices that is free; None: none is.

    A choice is all that one training writes to. Of several processes the first looks, and calls
    `begin` with the choice before any run can take another one.
    """
    run, found = Workdir(workdir), -1
    with ExitStack() as held:
        with hosts.together():
            if hosts.is_first():
                with _lock(run.locks / ".layout"):  # which no category is called
                    for i, trainings in enumerate(choices):
                        if locks := _taken(run, trainings):
                            held.enter_context(locks)
                            begin(found := i)
                            break
        found = hosts.as_the_first(found)
        yield None if found < 0 else found


def _taken(run: Workdir, trainings: Sequence[Training]) -> ExitStack | None:
    """The locks of all of these, or of none if another run works on one."""
    with ExitStack() as held:
        for training in trainings:
            if not (lock := _acquired(run, training)):
                return None
            held.callback(lock.release)
            _sign(run, training)
        return held.pop_all()


def take(run: Workdir, training: Training) -> FileLock:
    """The lock of a training, held by this process. Raises UserError that says who else has it."""
    if not (lock := _acquired(run, training)):
        raise UserError(
            f"{_at_work(run, training)}: wait for that to end, or choose another --workdir"
        )
    _sign(run, training)
    return lock


def at_work(run: Workdir, trainings: Sequence[Training]) -> str | None:
    """Which of these another run works on, and who that is; None: none works on any."""
    for training in trainings:
        if not (lock := _acquired(run, training)):
            return _at_work(run, training)
        lock.release()
    return None


def _at_work(run: Workdir, training: Training) -> str:
    facts = read_json(_signature(run, training))
    who = "process {process} on {host}, since {since}" if facts else "another"
    return f"{training.folder} is being worked on by {who.format_map(facts)}"


def _acquired(run: Workdir, training: Training) -> FileLock | None:
    """The lock of a training, or None if another has it."""
    path = run.lock(training)
    lock = _lock(path)
    with writing(path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
    return lock


def _sign(run: Workdir, training: Training) -> None:
    """Says that this process has the lock, and since when."""
    since = datetime.now().isoformat(" ", "seconds")
    facts = {"process": os.getpid(), "host": platform.node(), "since": since}
    write_json(_signature(run, training), facts)


def _signature(run: Workdir, training: Training) -> Path:
    return run.lock(training).with_suffix(".json")


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
