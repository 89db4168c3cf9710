"""Several processes as one run: who does what, and what they tell each other.

With one process, everything here is the identity.
"""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from rd_jax.system.errors import UserError

T = TypeVar("T")


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
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the processes of this run did not find each other ({reason}): start all of them "
            "with the same --coordinator_address=HOST:PORT and --num_processes=N, and "
            "--process_id=0 to N-1"
        ) from error


def is_first() -> bool:
    """Whether this process is the one that writes reports."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def share(count: int) -> slice:
    """Which of `count` things are this process's: a run of them, as many as others have or less."""
    size = -(-count // jax.process_count())
    return slice(jax.process_index() * size, min((jax.process_index() + 1) * size, count))


def gathered(own: np.ndarray, count: int) -> np.ndarray:
    """All `count` rows, of whose `share` each process gives its own; any but 64-bit dtypes."""
    if jax.process_count() == 1:
        return own
    padded = np.zeros((-(-count // jax.process_count()), *own.shape[1:]), own.dtype)
    padded[: len(own)] = own
    return np.asarray(multihost_utils.process_allgather(padded, tiled=True))[:count]


def as_the_first(value: int) -> int:
    """What the first process says, so that all decide alike; 32 bits."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def together(do: Callable[[], T]) -> T:
    """`do`; if it fails in one process, it fails in all, so that none waits for others forever."""
    if jax.process_count() == 1:
        return do()
    result: Any = None
    error: Exception | None = None
    try:
        result = do()
    except Exception as caught:
        error = caught
    failed = multihost_utils.process_allgather(np.int32(error is not None)).ravel()
    if error is not None:
        raise error
    if failed.any():
        raise UserError(f"process {int(np.argmax(failed))} failed: its own output says why")
    return result


def all_agree(own: bool) -> bool:
    """Whether every process says so."""
    if jax.process_count() == 1:
        return own
    return bool(multihost_utils.process_allgather(np.int32(own)).all())


def any_says(own: bool) -> bool:
    """Whether some process says so."""
    return not all_agree(not own)


def all_see(folder: Path) -> bool:
    """Whether what one process writes into `folder` can be read by all: a shared file system."""
    if jax.process_count() == 1:
        return True
    token = folder / f".seen-by-all-{as_the_first(uuid.uuid4().int % 2**31)}"
    together(lambda: token.touch() if is_first() else None)
    seen = all_agree(token.exists())
    if is_first():
        token.unlink()
    return seen
