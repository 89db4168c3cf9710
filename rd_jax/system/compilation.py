"""JAX's persistent compilation cache."""

import os
import platform

import jax

from rd_jax.system.files import cache_folder


def keep_compiled_programs() -> None:
    """Compiled programs are kept in the user's cache folder and found again by later processes.

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
