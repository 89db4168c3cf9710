"""What all commands share: their log, settings, flags, errors and exit codes."""

import argparse
import io
import logging
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn

import jax

from rd_jax.system.errors import EXPECTED, UserError, explained, first_line
from rd_jax.system.files import cache_folder
from rd_jax.system.interruption import stop_on_signals

# A user's own settings of JAX could change figures, or make Flax and optax fail.
_SETTINGS_OF_JAX: dict[str, Any] = {
    **dict.fromkeys(("jax_enable_x64", "jax_disable_jit", "jax_debug_key_reuse"), False),
    # A metric that is not defined is NaN.
    **dict.fromkeys(("jax_debug_nans", "jax_debug_infs"), False),
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_default_matmul_precision": None,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_transfer_guard": "allow",
}


def run_command(
    body: Callable[[], int], on_interrupt: Callable[[KeyboardInterrupt], str] = str
) -> int:
    """Run the body of a command and return the exit code.

    The code is the body's; 2 after an error that the user can mend, which is printed in one line;
    130 after an `Interrupted`, for which the line that `on_interrupt` returns is printed.
    """
    try:
        stop_on_signals()
        _set_up()
        return body()
    except EXPECTED as error:
        print(f"error: {explained(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(on_interrupt(error), file=sys.stderr)
        return 130


def _set_up() -> None:
    """Log this package at INFO and all others at WARNING; let no other setting change figures."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # characters that its encoding lacks
    line = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(format=line, datefmt="%H:%M:%S", force=True)
    logging.getLogger("rd_jax").setLevel(logging.INFO)
    # TFDS and Orbax log harmless things, and log errors that they also raise. Matplotlib logs that
    # there is no cache, which `cache_folder` says once.
    for name in ("absl", "asyncio", "matplotlib"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")  # they are for developers
    for name, value in _SETTINGS_OF_JAX.items():
        jax.config.update(name, value)
    # Matplotlib reads these on import, so `report` imports it only when it draws.
    os.environ["MPLBACKEND"] = "agg"
    os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))


def require_devices() -> None:
    """Start JAX on its devices, and keep compiled programs from now on.

    Raise UserError if JAX finds no device, which JAX_PLATFORMS may cause.
    """
    if flags := os.environ.get("XLA_FLAGS"):
        _check_xla_flags(flags)
    try:
        jax.devices()
    except Exception as error:  # the plugins of platforms raise all kinds of errors
        raise UserError(
            f"JAX finds no device ({first_line(error)}): unset JAX_PLATFORMS or set it to cpu, or "
            "install JAX for that device, as pip install 'jax[cuda13]'"
        ) from error
    keep_compiled_programs()


@cache
def _check_xla_flags(flags: str) -> None:
    """Raise UserError for flags that XLA does not know. XLA ends the process that tries them."""
    code = "from jaxlib import xla_client; xla_client.CompileOptions()"
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reason = done.stderr.strip().rpartition("] ")[2]
        raise UserError(f"{reason}: remove it from XLA_FLAGS={flags}, or unset it")


def keep_compiled_programs() -> None:
    """Keep compiled programs in the user's cache folder, where later processes find them.

    JAX's own variables take precedence: JAX_COMPILATION_CACHE_DIR chooses another folder, and
    JAX_ENABLE_COMPILATION_CACHE=false turns the cache off.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        # XLA compiles for this CPU. A machine with another CPU may share the folder.
        folder = cache_folder() / "compiled" / platform.node()
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # JAX keeps only programs above one second. A start needs dozens of smaller ones.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def num_processors() -> int:
    """Return how many processors this process may use, which can be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError, and whose help is a module's docstring as it is."""

    def __init__(self, command: str, docstring: str | None):
        as_it_is = argparse.RawDescriptionHelpFormatter
        super().__init__(command, None, docstring, formatter_class=as_it_is, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of printing the usage and exiting."""
        raise UserError(f"{message} (see --help)")
