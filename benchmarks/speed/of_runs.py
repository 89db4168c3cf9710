"""Prepare whole commands of rd_jax, started as users start them."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed.worker import Call


def facts() -> dict[str, Any]:
    """Return nothing: each run logs its own device."""
    return {}


def peak_bytes() -> int:
    """Return 0: another process holds the memory."""
    return 0


def start(*arguments: str, cache: Path) -> subprocess.Popen:
    """Start rd_jax.main with a folder for its caches and a workdir in it."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    for name in ("JAX_COMPILATION_CACHE_DIR", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        environment.pop(name, None)
    cache.mkdir(exist_ok=True)
    return subprocess.Popen(
        [*(sys.executable, "-m", "rd_jax.main"), *arguments, "--workdir", tempfile.mkdtemp()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def wait_for(text: str, process: subprocess.Popen) -> None:
    """Wait until the process writes a line with this text; raise RuntimeError if it never does."""
    assert process.stdout
    lines = [""]
    for line in process.stdout:
        if text in line:
            return
        lines.append(line)
    print(*lines, sep="", file=sys.stderr)
    raise RuntimeError(f"rd_jax.main ended with {lines[-1].strip()!r}")


def cold_start(backbone: str, size: int, cache: str) -> Call:
    """Prepare a run from the start of its process to the end of its first training step."""
    fields = {"batch_size": 4, "log_every_steps": 1}
    return _run("cold start", cache, ", loss ", "demo", _networks(backbone, size) | fields)


def whole_category(
    config: str, num_train: int, num_test: int, epochs: int, cache: str, **network: Any
) -> Call:
    """Prepare training and evaluation of a generated category; see `_networks`."""
    from rd_jax.data.synthetic import write_category

    data_dir = Path(tempfile.mkdtemp())
    write_category(data_dir, num_train, num_test, network["size"])
    fields = _networks(**network) | {"data_dir": data_dir, "num_epochs": epochs}
    return _run(f"whole {config}", cache, "Results are in", f"{config}:weave", fields)


def _networks(backbone: str, size: int) -> dict[str, Any]:
    return {"backbone": backbone, "teacher_weights": "random", "image_size": size}


def _run(name: str, cache: str, until: str, config: str, fields: dict[str, Any]) -> Call:
    """Prepare a run. Runs of one name share caches; the run with cache "empty" fills them."""
    folder = Path(tempfile.gettempdir(), name)
    if cache == "warm" and not (folder / "rd_jax").exists():
        raise RuntimeError("the run with an empty cache fills it: it has to come first and succeed")
    flags = [f"--config.{field}={value}" for field, value in fields.items()]

    def call() -> None:
        process = start("--config", config, *flags, cache=folder)
        wait_for(until, process)
        process.kill()  # do not wait: its end is not timed

    return Call(call)
