"""Trains or evaluates Reverse Distillation.

python -m rd_jax.main --config CONFIG[:category] --workdir DIR [--mode train|eval]
    [--config.NAME=VALUE ...]

CONFIG is the path of a file, or the bare name of a config that comes with the package: demo,
folder, mvtec, mvtec_short, one_class.
"""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from rd_jax.config import FIELDS, located, validate
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

# They may differ from process to process: what is found there is compared.
_PLACES = ("data_dir", "teacher_weights", "rd4ad_checkpoint")


def _define_processes(values: flags.FlagValues) -> None:
    define: Any = {"flag_values": values}
    flags.DEFINE_bool("distributed", False, "One of several processes: docs/hosts.md.", **define)
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of the first process.", **define)
    flags.DEFINE_integer("num_processes", None, "How many there are.", **define)
    flags.DEFINE_integer("process_id", None, "Which this one is, from 0.", **define)


def _flags(argv: list[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    define: Any = {"flag_values": values}
    # The fields that are overridden become flags, which are looked for in `sys_argv`.
    of_config: Any = {"sys_argv": argv, **define}
    config_flags.DEFINE_config_file("config", None, "With :category or without.", **of_config)
    flags.DEFINE_string("workdir", None, "Where checkpoints and results are kept.", **define)
    flags.DEFINE_enum("mode", "train", ["train", "eval"], "What to do.", **define)
    flags.DEFINE_bool("restart", False, "Train anew; what is there is moved aside.", **define)
    flags.DEFINE_bool("help", False, "Show this.", short_name="h", **define)
    _define_processes(values)
    return values


def main(argv: list[str]) -> int:
    """Parses the flags, trains or evaluates, prints the table; returns the exit code."""
    log_to_stderr()
    again = "the same command"
    try:
        settle()
        with hosts.together() if _join_processes(argv) else nullcontext():
            flag = _parse(argv)
            if not flag.help:
                require_devices()
                _check_same_command(flag)
        if flag.help:
            print(f"{__doc__ or ''}\n{flag.get_help()}")
            return 0
        again += " without --restart" if flag.restart else ""
        stop_on_sigterm()
        workdir = user_path(flag.workdir)
        keep_compiled_programs()
        if flag.mode == "train":
            table = train(flag.config, workdir, flag.restart)
        else:
            with hosts.together():
                table = _evaluate(flag, workdir)
    except EXPECTED as error:
        print(f"error: {explained(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"{error or 'interrupted'}; {again} goes on from there", file=sys.stderr)
        return 130
    if table:
        print(f"{table}\nResults are in {workdir}")
        print(f"Open {workdir / 'report.html'} (pictures) and {workdir / 'results.csv'} (figures)")
    return 0


def _evaluate(flag: flags.FlagValues, workdir: Path) -> str:
    """Evaluates what is asked for; returns the table."""
    if flag.config.rd4ad_checkpoint:
        return evaluate_rd4ad(flag.config, workdir)
    validate(flag.config)
    overrides = config_flags.get_override_values(flag["config"])
    if flag.config.dataset:  # named behind the colon, which is no override
        overrides["dataset"] = flag.config.dataset
    return evaluate_checkpoints(overrides, chosen_name(flag.config), workdir)


def _join_processes(argv: list[str]) -> bool:
    """Whether there are others; before all else, so that a mistake in one can be told to all."""
    values = flags.FlagValues()
    _define_processes(values)
    values.set_gnu_getopt()
    try:
        values(argv, known_only=True)
    except flags.Error as error:
        raise UserError(f"{error} (see --help)") from error
    explicit = (values.coordinator_address, values.num_processes, values.process_id)
    is_one_of_several = values.distributed or explicit != (None, None, None)
    if is_one_of_several:
        hosts.initialize(*explicit)
        require_devices()
    return is_one_of_several


def _check_same_command(flag: flags.FlagValues) -> None:
    """Raises UserError if the processes of a run are to do different things."""
    asked = {"--mode": flag.mode, "--restart": flag.restart}
    asked |= {f"config.{n}": getattr(flag.config, n, None) for n in FIELDS if n not in _PLACES}
    for name, value in asked.items():
        if not hosts.all_same(value):
            raise UserError(
                f"the processes were started with different {name} (here {value!r}): start all "
                "of them with the same command"
            )


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
