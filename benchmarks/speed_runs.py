"""What `benchmarks.speed` times of `python -m rd_jax.main`, each run in a process of its own."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.implementation import Call, Implementation
from rd_jax.data.synthetic import write_category


class Runs:
    """Runs of each job share a cache, which is empty at the first one.

    What they write lies in a folder that `benchmarks.speed` removes.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp())
        self._is_warm: dict[str, bool] = {}
        self._last: subprocess.Popen | None = None

    def run(self, name: str, cache: str, until: str, *arguments: str) -> Call:
        """From its start to its first output with this text; the cache is "empty" or "warm"."""
        if cache == "warm" and not self._is_warm.get(name):
            raise RuntimeError("the run that was to fill the cache failed")

        def call() -> None:
            self._call(self._folder / name, until, *arguments)
            self._is_warm[name] = True

        return Call(call)

    def cold_start(self, backbone: str, size: int, cache: str) -> Call:
        """From the start of a process to the end of its first training step."""
        return self.run(
            "cold start",
            cache,
            ", loss ",
            *("--config", "demo", f"--config.image_size={size}", "--config.batch_size=4"),
            *(f"--config.backbone={backbone}", "--config.teacher_weights=random"),
            "--config.log_every_steps=1",
        )

    def whole_category(
        self, backbone: str, size: int, num_train: int, num_test: int, epochs: int, cache: str
    ) -> Call:
        """Training and evaluation of a generated category."""
        data_dir = self._folder / "data"
        if not data_dir.exists():
            write_category(data_dir, num_train, num_test, size)
        return self.run(
            "whole category",
            cache,
            "Results are in",
            *("--config", "mvtec:weave", f"--config.data_dir={data_dir}"),
            *(f"--config.backbone={backbone}", "--config.teacher_weights=random"),
            *(f"--config.image_size={size}", f"--config.num_epochs={epochs}"),
        )

    def _call(self, cache: Path, until: str, *arguments: str) -> None:
        if self._last:
            self._last.wait()  # it may still hold memory of the device
        environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # which would not be empty
        workdir = tempfile.mkdtemp(dir=self._folder)
        self._last = process = subprocess.Popen(
            [sys.executable, "-m", "rd_jax.main", *arguments, "--workdir", workdir],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        assert process.stdout
        lines = [""]
        for line in process.stdout:
            lines.append(line)
            if until in line:
                process.kill()  # not waited for, since that is not part of what is timed
                return
        print(*lines, sep="", file=sys.stderr)
        raise RuntimeError(f"rd_jax.main ended with {lines[-1].strip()!r}")


def implementation(_: str, is_cpu: bool) -> Implementation:
    """rd_jax as its users start it."""
    if is_cpu:
        os.environ["JAX_PLATFORMS"] = "cpu"
    runs = Runs()
    jobs: dict[str, Callable[..., Call]] = {
        "cold start": runs.cold_start,
        "whole category": runs.whole_category,
    }
    return Implementation({}, jobs, lambda: 0)
