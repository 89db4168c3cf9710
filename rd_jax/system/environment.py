"""What a command makes of the environment it is started in, so that its results depend on none."""

import os
import sys
from pathlib import Path

import jax

from rd_jax.system.errors import UserError, first_line
from rd_jax.system.files import cache_folder

# What users set for programs of their own. Flax and optax fail with some; figures would differ.
_OF_JAX = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_default_prng_impl": "threefry2x32",
    "jax_transfer_guard": "allow",
    "jax_disable_jit": False,
    "jax_debug_nans": False,  # a metric that is not defined is one
    "jax_debug_infs": False,
}

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def num_processors() -> int:
    """How many processors this process may use, which may be fewer than the machine has."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:  # of a container
        quota, period = _QUOTA.read_text().split()
        return max(1, min(allowed or 1, int(quota) // int(period)))
    except (OSError, ValueError):  # there is none
        return allowed or 1


def read_names_as_utf8() -> None:
    """Starts this process anew with names of files as UTF-8, if Python would only know ASCII ones.

    That is LC_ALL=C where Python's own remedies are switched off.
    """
    if sys.getfilesystemencoding() == "ascii":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def settle() -> None:
    """Of this process: JAX's defaults, no windows, a cache folder.

    To be called by commands, before they compute, and not by a library.
    """
    for name, value in _OF_JAX.items():
        jax.config.update(name, value)
    # What matplotlib reads when it is imported, which is why `report` does that when it draws.
    os.environ["MPLBACKEND"] = "agg"
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isdir(weights := os.path.join(base, "huggingface")):  # be it one that is only read
        os.environ.setdefault("HF_HOME", weights)
    cache = cache_folder()
    os.environ["XDG_CACHE_HOME"] = str(cache.parent)  # other libraries have none elsewhere
    os.environ.setdefault("MPLCONFIGDIR", str(cache / "matplotlib"))


def require_devices() -> None:
    """Raises UserError if JAX has no device to compute on, as JAX_PLATFORMS may see to."""
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
