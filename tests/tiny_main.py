"""`rd_jax.main` with the tiny backbones, and with SIGKILL where KILL_AT says.

KILL_AT=evaluation/CATEGORY kills the process between the evaluation and the results of a category,
KILL_AT=training in the first training that has a checkpoint before its last step. WAIT_FOR=FILE
lets trainings begin once the file is there.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tests.tiny  # noqa: F401
from rd_jax import main
from rd_jax.report import gallery
from rd_jax.run import training
from rd_jax.run.task import Task
from rd_jax.store import checkpoint

KILL_AT = os.environ.get("KILL_AT", "")
_, _, KILLED_CATEGORY = KILL_AT.partition("evaluation/")
write_evaluation, followed = gallery.write_evaluation, training.followed


def write_or_die(path: Path, *arguments: Any) -> None:
    if path.parent.name == KILLED_CATEGORY:
        os.kill(os.getpid(), signal.SIGKILL)
    write_evaluation(path, *arguments)


def followed_or_die(dispatches: Any, task: Task, *arguments: Any) -> Iterator[Any]:
    while not os.path.exists(os.environ.get("WAIT_FOR", "/")):
        time.sleep(0.05)
    for state, step, stops in followed(dispatches, task, *arguments):
        yield state, step, stops
        while KILL_AT == "training" and step == task.last_step - 1:
            if checkpoint.steps(task.training.checkpoints):
                os.kill(os.getpid(), signal.SIGKILL)


gallery.write_evaluation, training.followed = write_or_die, followed_or_die
sys.exit(main.main(sys.argv))
