"""`rd_jax.main` with the tiny backbones, and with SIGKILL where KILL_AT says.

KILL_AT=evaluation/CATEGORY kills the process between the evaluation and the results of a category.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import tests.tiny  # noqa: F401
from rd_jax import main
from rd_jax.report import gallery

_, _, KILLED_CATEGORY = os.environ.get("KILL_AT", "").partition("evaluation/")
write_evaluation = gallery.write_evaluation


def write_or_die(path: Path, *arguments: Any) -> None:
    if path.parent.name == KILLED_CATEGORY:
        os.kill(os.getpid(), signal.SIGKILL)
    write_evaluation(path, *arguments)


gallery.write_evaluation = write_or_die
sys.exit(main.main(sys.argv))
