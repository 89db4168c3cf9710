"""Several processes as one run: who does what, and what they tell each other.

With one process, everything here is the identity.
"""

import secrets
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


def gathered(own: np.ndarray, count: int) -> np.ndarray:
    """All `count` rows, of whose `share` each process gives its own; any but 64-bit dtypes."""
    if jax.process_count() == 1:
        return own
    padded = np.zeros((-(-count // jax.process_count()), *own.shape[1:]), own.dtype)
    padded[: len(own)] = own
    return np.asarray(multihost_utils.process_allgather(padded, tiled=True))[:count]


def as_the_first(value: int) -> int:
    """What the first process says, so that all decide alike; 32 bits."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


@contextmanager
def together() -> Iterator[None]:
    """What fails inside in one process fails in all, so that none waits for others forever."""
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = multihost_utils.process_allgather(np.int32(failure is not None))
    if failure:
        raise failure
    if failed.any():
        raise UserError(f"process {np.argmax(failed)} failed: its own output says why")


def all_agree(own: bool) -> bool:
    """Whether every process says so."""
    return bool(multihost_utils.process_allgather(np.int32(own)).all())


def all_see(folder: Path) -> bool:
    """Whether what one process writes into `folder` can be read by all: a shared file system."""
    token = folder / f".seen-by-all-{as_the_first(secrets.randbits(31))}"
    with together():
        if is_first():
            token.touch()
    seen = all_agree(token.exists())
    if is_first():
        token.unlink()
    return seen
