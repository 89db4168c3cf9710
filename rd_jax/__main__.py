"""Reverse Distillation: train on good images only, then find defects in new images.

rd-jax train --config CONFIG --workdir DIR      train, evaluate, set thresholds
rd-jax eval --config CONFIG --workdir DIR       evaluate finished trainings
rd-jax predict --workdir DIR IMAGES --output OUT
rd-jax calibrate --workdir DIR IMAGES           set thresholds from more good images
rd-jax export --workdir DIR --output FILE       one file that runs without rd_jax
rd-jax weights BACKBONE --output FOLDER         fetch a teacher's weights
rd-jax list FOLDER > parts.csv                  list images as a table, which train takes

`rd-jax COMMAND --help` lists the flags of a command, and `rd-jax train --help-config` the fields
of a config. `python -m rd_jax` is the same as `rd-jax`.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

# The module of each command, and arguments that it always gets.
_COMMANDS: dict[str, tuple[str, list[str]]] = {
    "train": ("main", ["rd-jax train", "--mode=train"]),
    "eval": ("main", ["rd-jax eval", "--mode=eval"]),
    "predict": ("predict.__main__", []),
    "calibrate": ("calibrate", []),
    "export": ("export.__main__", []),
    "weights": ("weights.__main__", []),
    "list": ("data.__main__", []),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; return its exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    command, *rest = arguments or ["--help"]
    if command in ("--help", "-h", "help"):
        print((__doc__ or "").strip())
        return 0
    if command not in _COMMANDS:
        names = ", ".join(_COMMANDS)
        print(f"error: {command!r} is no command: choose one of {names}", file=sys.stderr)
        return 2
    if command in ("train", "eval") and "--help-config" in rest:
        print(import_module("rd_jax.config").plain())
        return 0
    module, always = _COMMANDS[command]
    run: Callable[[list[str]], int] = import_module(f"rd_jax.{module}").main
    return run([*always, *rest])


if __name__ == "__main__":
    sys.exit(main())
