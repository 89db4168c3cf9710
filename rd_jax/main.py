"""Trains or evaluates Reverse Distillation.

python -m rd_jax.main --config configs/mvtec.py[:category] --workdir DIR [--mode train|eval]
    [--config.NAME=VALUE ...]
"""

import os
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from rd_jax import evaluate_run, hosts, run
from rd_jax.compilation import keep_compiled_programs
from rd_jax.config import validate
from rd_jax.errors import EXPECTED, UserError, explained
from rd_jax.interruption import stop_on_sigterm
from rd_jax.progress import log_to_stderr
from rd_jax.splits import chosen_name

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with :category or without.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints and results are kept.")
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "What to do.")
RESTART = flags.DEFINE_bool("restart", False, "Train anew; what is there is moved aside.")

DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes: see the README.")
COORDINATOR = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of the first process.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which this one is, from 0.")


def main(argv: list[str]) -> int:
    """Parses the flags, trains or evaluates, prints the table; returns the exit code."""
    app.define_help_flags()
    log_to_stderr()
    try:
        _parse(argv)
        explicit = (COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
        if DISTRIBUTED.value or explicit != (None, None, None):
            hosts.initialize(*explicit)
        stop_on_sigterm()
        workdir = Path(os.path.expanduser(str(WORKDIR.value)))
        keep_compiled_programs()
        if MODE.value == "train":
            table = run.train(CONFIG.value, workdir, RESTART.value)
        elif CONFIG.value.rd4ad_checkpoint:
            table = evaluate_run.evaluate_rd4ad(CONFIG.value, workdir)
        else:
            validate(CONFIG.value)
            overrides = config_flags.get_override_values(flags.FLAGS["config"])
            if CONFIG.value.dataset:  # named behind the colon, which is no override
                overrides["dataset"] = CONFIG.value.dataset
            table = evaluate_run.evaluate_checkpoints(overrides, chosen_name(CONFIG.value), workdir)
    except EXPECTED as error:
        print(f"error: {explained(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        command = "the same command" + (" without --restart" if RESTART.value else "")
        print(f"{error or 'interrupted'}; {command} goes on from there", file=sys.stderr)
        return 130
    if hosts.is_first():
        print(f"{table}\nResults are in {workdir}: report.html, results.{{md,json,csv}}, figures/")
    return 0


def _parse(argv: list[str]) -> None:
    """Parses the flags; a config that cannot be read raises here."""
    try:
        rest = flags.FLAGS(argv)[1:]
        missing = [flag.name for flag in (CONFIG, WORKDIR) if flag.value is None]
    except Exception as error:  # a config file is code and may raise anything
        message = str(error.args[0] if isinstance(error, KeyError) else error)
        one_line = " ".join(message.replace("\\n", " ").split())
        raise UserError(f"{one_line} (see --help)") from error
    if rest or missing:
        problem = f"unknown argument {rest[0]!r}" if rest else f"--{missing[0]} is missing"
        raise UserError(
            f"{problem}: python -m rd_jax.main --config FILE --workdir DIR (see --help)"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
