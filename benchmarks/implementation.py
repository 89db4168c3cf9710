"""What a process of `benchmarks.speed_worker` can be asked to time."""

import platform
import re
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Call(NamedTuple):
    """A function that returns when what it does is done, and how many of the things it does."""

    call: Callable[[], Any]
    number: int = 1


class Implementation(NamedTuple):
    """What is timed by name, on which device."""

    facts: dict[str, Any]  # "platform" and "device" among them
    jobs: Mapping[str, Callable[..., Call]]
    peak_bytes: Callable[[], int]  # of the device's memory; of a CPU, this process's
    release: Callable[[], None] = lambda: None  # gives back memory that nothing needs


def random_images(count: int, size: int) -> np.ndarray:
    """uint8 [N, size, size, 3], the same for all implementations."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def cpu_model() -> str:
    """The name of this machine's CPU."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


def peak_process_bytes() -> int:
    """The most memory that this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
