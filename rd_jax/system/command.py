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
from pathlib import Path
from typing import NoReturn

import jax
from PIL import Image

from rd_jax.system.errors import EXPECTED, UserError, explained, first_line
from rd_jax.system.files import cache_folder, user_path
from rd_jax.system.interruption import Interrupted, stop_on_signals

# What users set for programs of their own would change figures, or make Flax and optax fail.
_SETTINGS_OF_JAX = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_default_matmul_precision": None,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_debug_key_reuse": False,
    "jax_transfer_guard": "allow",
    "jax_disable_jit": False,
    "jax_debug_nans": False,  # a metric that is not defined is one
    "jax_debug_infs": False,
}
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def run_command(
    body: Callable[[], int], on_interrupt: Callable[[KeyboardInterrupt], str] = str
) -> int:
    """Run the body of a command and return the exit code.

    That is what the body returns, 2 after an error that the user can mend, in one line, or 130
    after a signal, with the line that `on_interrupt` returns.
    """
    _log_to_stderr()
    try:
        _set_up()
        stop_on_signals()
        return body()
    except EXPECTED as error:
        print(f"error: {explained(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(on_interrupt(error if str(error) else Interrupted("interrupted")), file=sys.stderr)
        return 130


def _log_to_stderr() -> None:
    """Log this package at INFO and all others at WARNING."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for what its encoding lacks
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        level=logging.WARNING,
        force=True,
    )
    logging.getLogger("rd_jax").setLevel(logging.INFO)
    # TFDS and Orbax log what is no concern, and with a traceback what they also raise.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # `cache_folder` says once that there is no cache.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "Error (read|writ)ing persistent compilation cache entry")
    # Images that Pillow would warn of are refused, in our own words.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    # ml_collections loads config files by a method that Python calls deprecated.
    warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)


def _set_up() -> None:
    """Let neither the environment nor a display that is not there change what a command does."""
    for name, value in _SETTINGS_OF_JAX.items():
        jax.config.update(name, value)
    # Matplotlib reads these when it is imported, which is why `report` does that when it draws.
    os.environ["MPLBACKEND"] = "agg"
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isdir(weights := os.path.join(base, "huggingface")):  # which may be read-only
        os.environ.setdefault("HF_HOME", weights)
    folder = cache_folder()
    os.environ["XDG_CACHE_HOME"] = str(folder.parent)  # other libraries look for no other place
    os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))


def require_devices() -> None:
    """Start JAX on its devices. Raise UserError if it has none, as JAX_PLATFORMS may see to.

    From now on compiled programs are kept.
    """
    if flags := os.environ.get("XLA_FLAGS"):
        _check_xla_flags(flags)
    try:
        jax.devices()
    except Exception as error:  # the plugins of platforms raise all kinds of errors
        wanted = os.environ.get("JAX_PLATFORMS")
        which = f"device for JAX_PLATFORMS={wanted}" if wanted else "device"
        reason = f" ({first_line(error)})" if str(error) else ""
        raise UserError(
            f"JAX finds no {which}{reason}: unset JAX_PLATFORMS or set it to cpu, or install JAX "
            "for that device, as pip install 'jax[cuda13]'"
        ) from error
    keep_compiled_programs()


@cache
def _check_xla_flags(flags: str) -> None:
    """Raise UserError for flags that XLA does not know, for which it ends the process."""
    code = "from jaxlib import xla_client; xla_client.CompileOptions()"
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    if done.returncode and "XLA_FLAGS" in done.stderr:
        reason = done.stderr.strip().splitlines()[-1].rpartition("] ")[2]
        raise UserError(f"XLA_FLAGS={flags}: {reason}: remove it, or unset XLA_FLAGS")


def keep_compiled_programs() -> None:
    """Keep compiled programs in the user's cache folder, where later processes find them.

    JAX's own variables go first: JAX_COMPILATION_CACHE_DIR chooses another folder, and
    JAX_ENABLE_COMPILATION_CACHE=false turns the cache off.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = cache_folder() / "compiled"
    if jax.default_backend() == "cpu":
        # XLA compiles for the CPU at hand; another machine may share the folder, not the CPU.
        folder /= platform.node() or "this-machine"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # A start needs a few dozen small programs, each below JAX's one second, but not together.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def num_processors() -> int:
    """Return how many processors this process may use: fewer than there are in a container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = _QUOTA.read_text().split()
        return max(1, min(allowed or 1, int(quota) // int(period)))
    except (OSError, ValueError):  # there is no quota
        return allowed or 1


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are UserErrors and whose help is a module's docstring as it is."""

    def __init__(self, command: str, docstring: str | None):
        super().__init__(
            command,
            description=docstring,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of printing the usage and exiting."""
        raise UserError(f"{message} (see --help)")


def path(text: str) -> Path:
    """Return the path of a flag; ~ is the user's home."""
    try:
        return user_path(text)
    except UserError as error:  # of other errors argparse says nothing
        raise argparse.ArgumentTypeError(str(error)) from error
