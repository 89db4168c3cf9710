"""Trains or evaluates Reverse Distillation.

python -m rd_jax.main --config CONFIG[:category] --workdir DIR [--mode train|eval]
    [--config.NAME=VALUE ...]

CONFIG is the path of a file, or the bare name of a config that comes with the package: demo,
folder, mvtec, one_class.
"""

import sys
from typing import Any

from absl import flags
from ml_collections import config_flags

from rd_jax.config import located, validate
from rd_jax.data.splits import chosen_name
from rd_jax.run.evaluation import evaluate_checkpoints, evaluate_rd4ad
from rd_jax.run.training import train
from rd_jax.system import hosts
from rd_jax.system.compilation import keep_compiled_programs
from rd_jax.system.console import log_to_stderr
from rd_jax.system.environment import read_names_as_utf8, require_devices, settle
from rd_jax.system.errors import EXPECTED, UserError, explained
from rd_jax.system.files import user_path
from rd_jax.system.interruption import stop_on_sigterm


def _flags(argv: list[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    define: Any = {"flag_values": values}
    # The fields that are overridden become flags, which are looked for in `sys_argv`.
    of_config: Any = {"sys_argv": argv, **define}
    config_flags.DEFINE_config_file("config", None, "With :category or without.", **of_config)
    flags.DEFINE_string("workdir", None, "Where checkpoints and results are kept.", **define)
    flags.DEFINE_enum("mode", "train", ["train", "eval"], "What to do.", **define)
    flags.DEFINE_bool("restart", False, "Train anew; what is there is moved aside.", **define)
    flags.DEFINE_bool("distributed", False, "One of several processes: docs/hosts.md.", **define)
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of the first process.", **define)
    flags.DEFINE_integer("num_processes", None, "How many there are.", **define)
    flags.DEFINE_integer("process_id", None, "Which this one is, from 0.", **define)
    flags.DEFINE_bool("help", False, "Show this.", short_name="h", **define)
    return values


def main(argv: list[str]) -> int:
    """Parses the flags, trains or evaluates, prints the table; returns the exit code."""
    log_to_stderr()
    again = "the same command"
    try:
        settle()
        flag = _parse(argv)
        if flag.help:
            print(f"{__doc__ or ''}\n{flag.get_help()}")
            return 0
        again += " without --restart" if flag.restart else ""
        explicit = (flag.coordinator_address, flag.num_processes, flag.process_id)
        if flag.distributed or explicit != (None, None, None):
            hosts.initialize(*explicit)
        require_devices()
        stop_on_sigterm()
        workdir = user_path(flag.workdir)
        keep_compiled_programs()
        if flag.mode == "train":
            table = train(flag.config, workdir, flag.restart)
        elif flag.config.rd4ad_checkpoint:
            table = evaluate_rd4ad(flag.config, workdir)
        else:
            validate(flag.config)
            overrides = config_flags.get_override_values(flag["config"])
            if flag.config.dataset:  # named behind the colon, which is no override
                overrides["dataset"] = flag.config.dataset
            table = evaluate_checkpoints(overrides, chosen_name(flag.config), workdir)
    except EXPECTED as error:
        print(f"error: {explained(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"{error or 'interrupted'}; {again} goes on from there", file=sys.stderr)
        return 130
    if hosts.is_first():
        print(f"{table}\nResults are in {workdir}: report.html, results.{{md,json,csv}}, figures/")
    return 0


def _parse(argv: list[str]) -> flags.FlagValues:
    """The flags' values; a config that cannot be read raises here."""
    try:
        argv = located(argv)
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


if __name__ == "__main__":
    read_names_as_utf8()
    sys.exit(main(sys.argv))
