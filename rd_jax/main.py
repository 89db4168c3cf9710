"""Trains or evaluates Reverse Distillation.

python -m rd_jax.main --config CONFIG[:category] --workdir DIR [--mode train|eval]
    [--config.NAME=VALUE ...]

CONFIG is the path of a file, or the bare name of a config that comes with the package: demo,
folder, mvtec, mvtec_short, one_class. `rd-jax train --help-config` lists the fields.
"""

import re
import sys
from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from rd_jax.config import check_field, validate
from rd_jax.run.eval_mode import evaluate_checkpoints, evaluate_rd4ad
from rd_jax.run.plan import chosen_name
from rd_jax.run.training import train
from rd_jax.system import hosts
from rd_jax.system.command import require_devices, run_command
from rd_jax.system.errors import UserError
from rd_jax.system.files import user_path


def _flags(argv: list[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    define: Any = {"flag_values": values}
    # Overridden fields become flags, which `config_flags` looks for in `sys_argv`.
    of_config: Any = {"sys_argv": argv, **define}
    config_flags.DEFINE_config_file("config", None, "With :category or without.", **of_config)
    flags.DEFINE_string("workdir", None, "Where checkpoints and results are kept.", **define)
    flags.DEFINE_enum("mode", "train", ["train", "eval"], "What to do.", **define)
    flags.DEFINE_bool("restart", False, "Train anew; move earlier files aside.", **define)
    flags.DEFINE_bool("distributed", False, "One of several processes: docs/hosts.md.", **define)
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of the first process.", **define)
    flags.DEFINE_integer("num_processes", None, "How many there are.", **define)
    flags.DEFINE_integer("process_id", None, "Which this one is, from 0.", **define)
    flags.DEFINE_integer("join_timeout", 60, "Seconds to wait for the others.", **define)
    flags.DEFINE_bool("help", False, "Show this.", short_name="h", **define)
    return values


def main(argv: list[str]) -> int:
    """Parse the flags, train or evaluate, print the table; return the exit code."""
    again = "the same command goes on from there"
    if any(argument.startswith("--restart") for argument in argv):
        again = "the same command without --restart goes on from there"
    return hosts.left(run_command(partial(_run, argv), lambda error: f"{error}; {again}"))


def _run(argv: list[str]) -> int:
    flag = _parse(argv)
    if flag.help:
        print(f"{__doc__ or ''}\n{flag.get_help()}")
        return 0
    explicit = (flag.coordinator_address, flag.num_processes, flag.process_id)
    if flag.distributed or explicit != (None, None, None):
        hosts.initialize(*explicit, flag.join_timeout)
    require_devices()
    workdir = user_path(flag.workdir)
    if flag.mode == "train":
        table = train(flag.config, workdir, flag.restart)
    elif flag.config.rd4ad_checkpoint:
        table = evaluate_rd4ad(flag.config, workdir)
    else:
        validate(flag.config)
        overrides = config_flags.get_override_values(flag["config"])
        if flag.config.dataset:  # named behind the colon, so not among the overrides
            overrides["dataset"] = flag.config.dataset
        table = evaluate_checkpoints(overrides, chosen_name(flag.config), workdir)
    if table:
        print(f"{table}\nResults are in {workdir}; results.md says how they were made")
        print(f"Open {workdir / 'report.html'} (pictures) and {workdir / 'results.csv'} (figures)")
    return 0


def _parse(argv: list[str]) -> flags.FlagValues:
    """Return the flags' values. Raise UserError if they cannot be parsed."""
    try:
        argv = _with_paths(argv)
        for argument in argv:
            if override := re.match(r"--?(?:no)?config\.(\w+)", argument):
                check_field(override[1])
        values = _flags(argv)
        rest = values(argv)[1:]
        missing = [name for name in ("config", "workdir") if values[name].value is None]
    except Exception as error:  # a config file is code and may raise anything
        message = str(error.args[0] if isinstance(error, KeyError) else error)
        one_line = " ".join(message.replace("\\n", " ").split())
        raise UserError(f"{one_line} (see --help)") from error
    if (rest or missing) and not values.help:
        problem = f"unknown argument {rest[0]!r}" if rest else f"--{missing[0]} is missing"
        raise UserError(
            f"{problem}: python -m rd_jax.main --config CONFIG --workdir DIR (see --help)"
        )
    return values


def _with_paths(argv: Sequence[str]) -> list[str]:
    """Replace a bare name behind --config by the path of the package's config."""
    arguments = list(argv)
    for i, (before, argument) in enumerate(pairwise(["", *argv])):
        flag = "--config=" if argument.startswith("--config=") else ""
        name, colon, rest = argument.removeprefix(flag).partition(":")
        if (flag or before == "--config") and name.isidentifier():
            arguments[i] = f"{flag}{_shipped(name)}{colon}{rest}"
    return arguments


def _shipped(name: str) -> Path:
    """Return the path of a config of this package. Raise UserError if there is none."""
    folder = Path(str(files("rd_jax.configs")))
    path = folder / f"{name}.py"
    if not path.is_file():
        names = sorted(path.stem for path in folder.glob("[a-z]*.py"))
        raise UserError(
            f"--config {name}: there is no such config; there are {', '.join(names)}, or give the "
            "path of a file"
        )
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv))
