"""Several processes as one run: who does what, and what they tell each other.

With one process, everything here is the identity.
"""

import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from rd_jax.system.errors import UserError, first_line


def initialize(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the other processes, before anything else of JAX is used.

    Without arguments, JAX finds out from Slurm, Open MPI, Kubernetes or the TPU pod what they
    are. Raises UserError if the processes do not find each other.
    """
    try:
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    except Exception as error:  # cluster detection and the runtime raise all kinds of errors
        raise UserError(
            f"the processes of this run did not find each other ({first_line(error)}): start all "
            "of them with the same --coordinator_address=HOST:PORT and --num_processes=N, and "
            "--process_id=0 to N-1"
        ) from error


def is_first() -> bool:
    """Whether this process is the one that writes reports."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process is here."""
    multihost_utils.sync_global_devices(name)


def share(count: int) -> slice:
    """Which of `count` things are this process's: a run of them, as many as others have or less."""
    size = -(-count // jax.process_count())
    first = jax.process_index() * size
    return slice(first, min(first + size, count))


class FailedElsewhereError(UserError):
    """Another process failed."""


_all_know = False  # that one of them failed: they have nothing more to tell each other


def _told(own: int, failed: bool = False) -> np.ndarray:
    """What each process tells here, an int32, and with it whether it failed.

    Raises FailedElsewhereError in those that did not, so that whoever fails inside of `together`
    is heard at the next of these calls, whichever it is.
    """
    global _all_know
    if jax.process_count() == 1:
        return np.array([own], np.int32)
    told = np.asarray(multihost_utils.process_allgather(np.array([failed, own], np.int32)))
    _all_know = bool(told[:, 0].any())
    if _all_know and not failed:
        raise FailedElsewhereError(
            f"process {np.argmax(told[:, 0])} failed: its own output says why"
        )
    return told[:, 1]


def as_the_first(value: int) -> int:
    """What the first process says, so that all decide alike; 32 bits."""
    return int(_told(value)[0])


def told_by_all(own: int) -> list[int]:
    """What each process says; 32 bits."""
    return _told(own).tolist()


def gathered(own: np.ndarray, count: int) -> np.ndarray:
    """All `count` rows, of whose `share` each process gives its own; any but 64-bit dtypes."""
    if jax.process_count() == 1:
        return own
    _told(0)  # whether all have something to give
    padded = np.zeros((-(-count // jax.process_count()), *own.shape[1:]), own.dtype)
    padded[: len(own)] = own
    return np.asarray(multihost_utils.process_allgather(padded, tiled=True))[:count]


@contextmanager
def together() -> Iterator[None]:
    """What fails inside in one process fails in all, so that none waits for others forever."""
    global _all_know
    _all_know = False
    try:
        yield
    except Exception:
        if not _all_know:
            _told(0, failed=True)
        raise
    _told(0)


def all_agree(own: bool) -> bool:
    """Whether every process says so."""
    return bool(_told(own).all())


def all_same(value: object) -> bool:
    """Whether `value`, or what is shown of it, is the same in every process."""
    return len({*_told(zlib.crc32(repr(value).encode()) >> 1)}) == 1


def all_see(folder: Path) -> bool:
    """Whether what one process writes into `folder` can be read by all: a shared file system."""
    token = folder / f".seen-by-all-{as_the_first(secrets.randbits(31))}"
    with together():
        if is_first():
            token.touch()
    try:
        return all_agree(token.exists())
    finally:
        if is_first():
            token.unlink()
