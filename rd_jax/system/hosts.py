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

_HEARTBEAT_SECONDS = 20  # after which a process that is silent counts as dead
_WRITING_SECONDS = 3600  # that the others wait at the end, while the first process writes
_START = (
    "start all processes of a run with the same --coordinator_address=HOST:PORT and "
    "--num_processes=N, and --process_id=0 to N-1"
)


def initialize(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    timeout_seconds: int = 60,
) -> None:
    """Join the other processes, before anything else of JAX is used.

    Without arguments, JAX finds out from Slurm, Open MPI, Kubernetes or the TPU pod what they
    are. Raise UserError if they are contradictory; after `timeout_seconds` without the others, end
    this process with one line and exit code 2.
    """
    others = f"{num_processes or 'all'} processes at {coordinator_address or 'their coordinator'}"
    logger.info("waiting for %s", others)
    # XLA's own time-out would end the process with a stack of C++.
    timer = threading.Timer(timeout_seconds, _give_up, [others, timeout_seconds])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            initialization_timeout=2 * timeout_seconds,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_WRITING_SECONDS,
        )
    except Exception as error:  # cluster detection and the runtime raise all kinds of errors
        raise UserError(
            f"this process cannot join others ({first_line(error)}): {_START}"
        ) from error
    finally:
        timer.cancel()


def _give_up(others: str, seconds: int) -> None:
    problem = f"waited {seconds} s for {others}, not all of which came"
    print(f"error: {problem}: {_START}", file=sys.stderr, flush=True)
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
    """Return whether all processes stop here, since one of them received SIGTERM.

    All of them ask at the same dispatches, which count up by 1.
    """
    return multihost_utils.reached_preemption_sync_point(dispatch)


def left(code: int) -> int:
    """Return an exit code. After a failure, end this process at once if there are others.

    An orderly end would wait for them, while they wait for this process.
    """
    if code and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
