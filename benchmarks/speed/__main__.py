"""Measure how fast rd_jax is on this machine, and compare it with PyTorch.

python -m benchmarks.speed [--cpu] [--only TEXT] [--budget SECONDS] [--json FILE]

In each row every implementation has its own process and so its own memory, and they take turns.
PyTorch runs if it is installed (`make install EXTRAS=dev,parity`) and finds the kind of device that
JAX finds. It runs the authors' structure as it is (eager) and tuned (channels_last; on a GPU
bfloat16 autocast, fused Adam, cudnn.benchmark). One device is used. Each row is printed and saved
when it is done, the most important rows first. On a GPU the budget is 8 minutes; rows that do not
fit are left out. Times are medians and, in brackets, the quarter and three-quarter points. Memory
is the most that the device held in a row; on a CPU, the most that the process held.
"""

import argparse
import importlib.util
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from benchmarks.speed.worker import Job, NoAnswerError, Worker
from benchmarks.table import print_heading, print_line, write_json

# The module that measures a column, and the arguments that its functions get.
COLUMNS: dict[str, tuple[str, dict[str, Any]]] = {
    "rd_jax": ("of_jax", {}),
    "rd_jax bfloat16": ("of_jax", {"dtype": "bfloat16"}),
    "PyTorch eager": ("of_torch", {"is_tuned": False}),
    "PyTorch tuned": ("of_torch", {"is_tuned": True}),
    "PIL alone": ("of_jax", {"by_pil": True}),
}
OWN, OWN_BFLOAT16, EAGER, TUNED, PIL = COLUMNS
BUDGET = 480.0  # seconds, on a GPU


class Sizes(NamedTuple):
    """The sizes of all measurements; images have `size` pixels."""

    train_batches: tuple[int, ...]
    score_batches: tuple[int, ...]
    repeats: int
    seconds: float = 0.0  # a sample takes at least so long
    size: int = 256
    num_maps: int = 160
    num_files: int = 32
    epochs: tuple[int, int] = (0, 0)  # of a whole category: short recipe, paper
    num_train: int = 209  # images, as many as `bottle` has
    num_test: int = 16  # images that are good, and of each of four defects


GPU = Sizes((16, 64), (1, 16, 64), repeats=10, seconds=0.3, epochs=(40, 200))
CPU = Sizes((4,), (1, 8), repeats=5)
TINY = Sizes(
    (2,), (2,), 1, 0.0, 32, num_maps=8, num_files=2, epochs=(1, 1), num_train=8, num_test=1
)


class Row(NamedTuple):
    """A row of the table: one figure for each column, each from `repeats` samples."""

    name: str
    function: str
    arguments: Mapping[str, Any]
    columns: Sequence[str]
    repeats: int
    is_run: bool = False  # a whole run, which `of_runs` measures

    def job(self, column: str, kind: str) -> Job:
        """Return the job of a column's process, for this kind of device only."""
        if self.is_run:
            return Job("benchmarks.speed.of_runs", self.function, self.arguments, warm_up=0)
        module, extra = COLUMNS[column]
        return Job(f"benchmarks.speed.{module}", self.function, {**self.arguments, **extra}, kind)


@dataclass
class Measured:
    """The figures of a row, for each column."""

    facts: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, tuple[float, float, float]] = field(default_factory=dict)  # and quartiles
    peak_bytes: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def rows_of(sizes: Sizes, backbone: str, has_torch: bool, has_bfloat16: bool) -> list[Row]:
    """Return all rows, the most important ones first."""
    pytorch = (EAGER, TUNED) if has_torch else ()
    # A run of rd_jax scores in float32 on every device; tuned PyTorch does not.
    scorers = (OWN, OWN_BFLOAT16, *pytorch) if has_bfloat16 else (OWN, *pytorch)
    network = {"backbone": backbone, "size": sizes.size}

    def of_batch(name: str, function: str, batch: int, columns: Sequence[str], **more: Any) -> Row:
        arguments = network | {"batch": batch} | more
        return Row(f"{name}, batch {batch}", function, arguments, columns, sizes.repeats)

    def steps(batch: int) -> list[Row]:
        names = {"training step": False, "training step on kept features": True}
        columns = (OWN, *pytorch)
        return [of_batch(n, "training_step", batch, columns, keeps=names[n]) for n in names]

    def of_caches(name: str, function: str, arguments: dict[str, Any]) -> list[Row]:
        return [
            Row(f"{name}, {c} cache", function, arguments | {"cache": c}, (OWN,), 1, is_run=True)
            for c in ("empty", "warm")
        ]

    maps, files = ({"count": n, "size": sizes.size} for n in (sizes.num_maps, sizes.num_files))
    category = {key: getattr(sizes, key) for key in ("num_train", "num_test")}
    whole = [
        row
        for config, epochs in zip(("mvtec_short", "mvtec"), sizes.epochs, strict=True)
        for row in of_caches(
            f"whole category, {config}, {epochs} epochs",
            "whole_category",
            network | category | {"config": config, "epochs": epochs},
        )
        if epochs
    ]
    return [
        *(row for batch in sizes.train_batches for row in steps(batch)),
        *(of_batch("scoring", "scoring", batch, scorers) for batch in sizes.score_batches),
        *whole,
        Row(f"metrics of {sizes.num_maps} maps", "metrics", maps, (OWN,), sizes.repeats),
        Row("decoding, one image", "decoding", files, (OWN, PIL), sizes.repeats),
        *of_caches("cold start to first step", "cold_start", network),
    ]


def measure(row: Row, kind: str, seconds: float, deadline: float | None) -> Measured:
    """Measure a row. Columns take turns, so that a slow moment of the machine hits all of them.

    If a column fails, the others go on.
    """
    if deadline is not None and time.monotonic() >= deadline:
        return Measured(failures=dict.fromkeys(row.columns, "left out, the budget is spent"))
    found = Measured()
    samples: dict[str, list[float]] = {column: [] for column in row.columns}
    with ExitStack() as stack:
        workers = {column: Worker(row.job(column, kind)) for column in row.columns}
        for worker in workers.values():
            stack.callback(worker.close)
        for i in range(1 + row.repeats):  # the first answer means that they are prepared
            for column in list(samples):
                try:
                    answer = workers[column].ask(seconds, deadline)
                except NoAnswerError as error:
                    found.failures[column] = str(error)
                    del samples[column]
                    workers[column].close()  # others may need its memory
                    continue
                if i:
                    samples[column].append(answer[0])
                    found.peak_bytes[column] = answer[1]
                else:
                    found.facts[column] = answer
    found.seconds = {column: quartiles(values) for column, values in samples.items()}
    return found


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, the quarter and the three-quarter point of at least one sample."""
    median, low, high = np.quantile(samples, (0.5, 0.25, 0.75)).tolist()
    return median, low, high


def cell(found: Measured, column: str) -> str:
    """Return milliseconds, their spread and MiB, or why they are missing."""
    if column in found.seconds:
        median, low, high = (1e3 * seconds for seconds in found.seconds[column])
        spread = f" ({low:.1f} to {high:.1f})" if low < high else ""
        size = found.peak_bytes[column] >> 20
        return f"{median:.1f}{spread}{f', {size} MiB' if size else ''}"
    return f"NONE: {found.failures[column][:150]}" if column in found.failures else ""


def run(options: argparse.Namespace, start: float) -> None:
    """Ask JAX for its device, then measure row after row."""
    worker = Worker(Job("benchmarks.speed.of_jax"))
    try:
        facts = worker.ask(0)
    finally:
        worker.close()
    on_cpu = facts["platform"] == "cpu"
    budget = BUDGET if options.budget is None and not on_cpu else options.budget
    sizes = TINY if options.tiny else CPU if on_cpu else GPU
    backbone = "resnet10" if options.tiny else options.backbone
    facts |= {"cpu_cores": os.cpu_count(), "python": platform.python_version()}
    facts |= {"backbone": backbone, "budget_seconds": budget}
    print(", ".join(f"{name} {value}" for name, value in facts.items()), end="\n\n")
    print_heading(["milliseconds", *COLUMNS])
    saved: dict[str, Any] = facts | {"rows": {}}
    has_torch = importlib.util.find_spec("torch") is not None
    for row in rows_of(sizes, backbone, has_torch, has_bfloat16=not on_cpu):
        if options.only in row.name:
            deadline = start + budget if budget else None
            found = measure(row, facts["platform"], sizes.seconds, deadline)
            print_line([row.name, *(cell(found, column) for column in COLUMNS)])
            saved["rows"][row.name] = asdict(found)
            write_json(options.json, saved)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the flags; measure, print and write."""
    start = time.monotonic()
    description, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=description, epilog=rest)
    parser.add_argument("--cpu", action="store_true", help="use the CPU, with sizes for a laptop")
    parser.add_argument("--tiny", action="store_true", help="a GPU's rows in tiny sizes, for tests")
    parser.add_argument("--only", default="", help="measure rows whose name contains this text")
    parser.add_argument("--budget", type=float, help="seconds; 480 on a GPU, else no limit")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    parser.add_argument("--backbone", default="wide_resnet50_2", help="of teacher and student")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes end, too
    visible = "" if options.cpu else os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    os.environ |= {"CUDA_VISIBLE_DEVICES": visible, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if options.cpu:
        os.environ["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["TMPDIR"] = folder  # for all files of the processes
        run(options, start)


if __name__ == "__main__":
    main()
