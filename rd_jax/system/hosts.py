"""Several processes as one: all run the same program, the first one writes.

JAX's distributed runtime does the rest: when one process dies, it ends the others.
"""

import logging
import os
import sys
import threading
import zlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from rd_jax.system.errors import UserError, first_line

logger = logging.getLogger(__name__)

_SILENCE = 20  # seconds after which a process counts as dead
_WRITING = 3600  # seconds that all wait at the end for the first process, which writes
_START = (
    "start all processes of a run with the same --coordinator_address=HOST:PORT and "
    "--num_processes=N, and --process_id=0 to N-1"
)


def initialize(
    address: str | None, num_processes: int | None, process_id: int | None, timeout: int = 60
) -> None:
    """Join the other processes, before anything else of JAX is used.

    Where an argument is None, JAX asks Slurm, Open MPI, Kubernetes or the TPU pod. Raise UserError
    if the arguments are contradictory; after `timeout` seconds without the others, end this process
    with one line and exit code 2.
    """
    others = f"{num_processes or 'all'} processes at {address or 'their coordinator'}"
    logger.info("waiting for %s", others)
    # XLA's own time-out comes later and ends the process with a stack of C++.
    problem = f"waited {timeout} s for {others}, and not all came: {_START}"
    timer = threading.Timer(timeout, _give_up, [problem])
    timer.start()
    try:
        jax.distributed.initialize(
            *(address, num_processes, process_id),
            initialization_timeout=2 * timeout,
            heartbeat_timeout_seconds=_SILENCE,
            shutdown_timeout_seconds=_WRITING,
        )
    except Exception as error:  # cluster detection and the runtime raise all kinds of errors
        problem = f"this process cannot join others ({first_line(error)}): {_START}"
        raise UserError(problem) from error
    finally:
        timer.cancel()


def _give_up(problem: str) -> None:
    print(f"error: {problem}", file=sys.stderr, flush=True)
    os._exit(2)


def is_first() -> bool:
    """Return whether this process is the one that writes."""
    return jax.process_index() == 0


def check_same(facts: object, problem: str) -> None:
    """Raise UserError with this problem if `facts` differ between the processes."""
    if jax.process_count() == 1:
        return
    own = np.array([zlib.crc32(repr(facts).encode()) >> 1], np.int32)
    if len(np.unique(multihost_utils.process_allgather(own))) > 1:
        raise UserError(problem)


def should_stop(dispatch: int) -> bool:
    """Return whether all processes stop here because one of them received SIGTERM.

    All processes call this with the same numbers, which count up by 1.
    """
    return multihost_utils.reached_preemption_sync_point(dispatch)


def left(code: int) -> int:
    """Return an exit code. After a failure, end this process at once if there are others.

    An orderly exit would wait for the others, while they wait for this process.
    """
    if code and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
