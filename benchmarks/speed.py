"""How fast rd_jax is on this machine, beside PyTorch.

python -m benchmarks.speed [--cpu] [--only TEXT] [--budget SECONDS] [--json FILE]

Each implementation has a process and so memory of its own; they take turns within each row. PyTorch
runs if it is installed (`make install EXTRAS=dev,parity`): the authors' structure as it is (eager)
and tuned (channels_last; on a GPU bfloat16 autocast, fused Adam, cudnn.benchmark), if it finds the
kind of device that JAX finds. Of several GPUs one is used. A row is printed and saved as soon as it
is there, the most important ones first; on a GPU those that 8 minutes do not hold are left out.
Times are medians; the spread is that of the quarter and three-quarter points. Memory is the most
that the device held for a row, on a CPU the most that the process did.
"""

import argparse
import importlib.util
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from benchmarks.asked import Asked, NoAnswerError
from benchmarks.limits import budget_of, deadline_of, one_gpu
from benchmarks.printed import print_heading, print_line, write_whole
from benchmarks.speed_rows import CPU, GPU, OWN, PIL, TINY, Row, row_groups

TORCH = {"PyTorch eager": "eager", "PyTorch tuned": "tuned"}  # which process measures which


class Timing(NamedTuple):
    """Seconds: median, quarter and three-quarter point."""

    median: float
    low: float
    high: float


class Measured(NamedTuple):
    """What was found of a row, by column."""

    timings: dict[str, Timing]
    peaks: dict[str, tuple[int, bool]]  # bytes, and whether they are of this row for sure
    failures: dict[str, str]


def timing(samples: Sequence[float]) -> Timing:
    """The summary of at least one sample."""
    if len(samples) == 1:
        return Timing(*[samples[0]] * 3)
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, low, high)


def measure(
    row: Row, processes: Mapping[str, Asked], seconds: float, deadline: float | None
) -> Measured:
    """A row; the columns take turns, so that a machine that slows down slows all of them down."""
    if deadline is not None and time.monotonic() >= deadline:
        return Measured({}, {}, dict.fromkeys(row.jobs, "left out, the budget is spent"))
    samples: dict[str, list[float]] = {}
    found = Measured({}, {}, {})

    def asked(column: str, **request: Any) -> dict[str, Any]:
        """The answer of the column's process; without one the column is lost, and it alone."""
        try:
            return processes[row.jobs[column].process].ask(deadline, **request)
        except NoAnswerError as error:
            found.failures[column] = str(error)
            samples.pop(column, None)
            return {}

    for column, job in row.jobs.items():
        samples[column] = []
        asked(column, prepare=job.name, arguments=job.arguments, warm_up=row.warm_up)
    for _ in range(row.repeats):
        for column in list(samples):
            answer = asked(column, sample=row.jobs[column].name, seconds=seconds)
            if answer:
                samples[column].append(answer["seconds"])
    for column in list(samples):
        found.timings[column] = timing(samples[column])
        answer = asked(column, release=True)
        if answer and row.has_memory:
            found.peaks[column] = (answer["peak_bytes"], answer["is_exact"])
    return found


def print_row(row: Row, found: Measured, columns: Sequence[str]) -> None:
    """Milliseconds, median (spread), and a line of MiB where they are known."""

    def time_of(column: str) -> str:
        if column in found.timings:
            median, low, high = (1e3 * seconds for seconds in found.timings[column])
            return f"{median:.1f}" + (f" ({low:.1f} to {high:.1f})" if row.repeats > 1 else "")
        return f"NONE: {found.failures[column][:150]}" if column in found.failures else ""

    def memory_of(column: str) -> str:
        size, is_exact = found.peaks.get(column, (0, True))
        return f"{'' if is_exact else 'at most '}{size / 2**20:.0f}" if size else ""

    print_line([row.name, *map(time_of, columns)])
    if found.peaks:
        print_line([f"{row.name}: peak MiB", *map(memory_of, columns)])


def as_json(found: Measured) -> dict[str, Any]:
    """The row in the file."""
    return {
        "seconds": {column: value._asdict() for column, value in found.timings.items()},
        "peak_bytes": {
            column: {"bytes": size, "is_exact": is_exact}
            for column, (size, is_exact) in found.peaks.items()
        },
        "failures": found.failures,
    }


def processes_of(is_cpu: bool, folder: str) -> dict[str, Asked]:
    """All by kind; what they write lies below `folder`, and JAX takes only memory that it needs."""
    common = {"TMPDIR": folder, "CUDA_VISIBLE_DEVICES": one_gpu()}
    kinds = [OWN, *(TORCH.values() if importlib.util.find_spec("torch") else ())]
    shared = common | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    processes = {kind: Asked(kind, is_cpu, shared) for kind in kinds}
    return processes | {"runs": Asked("runs", is_cpu, common)}


def implementations(processes: Mapping[str, Asked]) -> dict[str, dict[str, Any]]:
    """What each one is and computes on, or how it failed, by column."""
    columns = {OWN: OWN} | {column: kind for column, kind in TORCH.items() if kind in processes}
    for kind in columns.values():
        processes[kind].start()
    found: dict[str, dict[str, Any]] = {}
    for column, kind in columns.items():
        try:
            found[column] = processes[kind].ask(facts=True)
        except NoAnswerError as error:
            found[column] = {"failed": str(error)}
    return found


def heading(column: str, facts: Mapping[str, Any], platform: str) -> str:
    """A column's name, with what is wrong with it: it is then not measured."""
    if "failed" in facts:
        return f"{column}: FAILED"
    if facts["platform"] != platform:
        found, other = facts["platform"].upper(), platform.upper()
        return f"{column}: NOT MEASURED, since it is on {found} and {OWN} on {other}"
    return column


def run(options: argparse.Namespace, processes: Mapping[str, Asked], start: float) -> int:
    """Asks what there is, then for row after row."""
    found = implementations(processes)
    for column, facts in found.items():
        print(f"{column}: {', '.join(f'{name} {value}' for name, value in facts.items())}")
    if "failed" in found[OWN]:
        return 1
    own = found[OWN]["platform"]
    budget = budget_of(options.budget, own)
    deadline = deadline_of(start, budget)
    sizes = TINY if options.tiny else CPU if own == "cpu" else GPU
    backbone = "resnet10" if options.tiny else options.backbone
    machine = {
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        "backbone": backbone,
        "budget_seconds": budget,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()), end="\n\n")
    saved = {**machine, "implementations": found, "rows": (rows := {})}
    write_whole(options.json, saved)
    headings = {column: heading(column, facts, own) for column, facts in found.items()}
    print_heading(["milliseconds", *headings.values(), PIL])
    torch_columns = {c: kind for c, kind in TORCH.items() if headings.get(c) == c}
    for group in row_groups(sizes, backbone, torch_columns):
        chosen = [row for row in group if options.only in row.name]
        used = [processes[kind] for kind in {j.process for r in chosen for j in r.jobs.values()}]
        for process in used:
            process.start()
        for row in chosen:
            result = measure(row, processes, sizes.seconds, deadline)
            print_row(row, result, [*headings, PIL])
            rows[row.name] = as_json(result)
            write_whole(options.json, saved)
        for process in used:
            process.close()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; returns the exit code."""
    start = time.monotonic()
    description, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=description, epilog=rest)
    parser.add_argument("--cpu", action="store_true", help="the CPU, with sizes for a laptop")
    parser.add_argument("--tiny", action="store_true", help="all rows of a GPU, for tests")
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    parser.add_argument("--budget", type=float, help="seconds; 480 on a GPU, else no limit")
    parser.add_argument("--json", default="", help="where the figures are written, too")
    parser.add_argument("--backbone", default="wide_resnet50_2", help="of teacher and student")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes are ended
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        processes = processes_of(options.cpu, folder)
        for process in processes.values():
            stack.callback(process.close)
        return run(options, processes, start)


if __name__ == "__main__":
    sys.exit(main())
