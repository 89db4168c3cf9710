"""Measure how much memory is free."""

import os
import re
from pathlib import Path

import jax

_MEMINFO = Path("/proc/meminfo")  # Linux
_LIMITS = (  # of a container: cgroups, version 2 and 1
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def free_bytes() -> int:
    """Return the bytes that are free on each local device; on a CPU, its share of the RAM."""
    devices = jax.local_devices()
    stats = [device.memory_stats() for device in devices]
    if all(stats):
        return min(each["bytes_limit"] - each["bytes_in_use"] for each in stats)
    return _free_ram() // len(devices)


def _free_ram() -> int:
    limits = [int(text) for path in _LIMITS if (text := _text(path).strip()).isdigit()]
    if available := re.search(r"MemAvailable:\s+(\d+)", _text(_MEMINFO)):
        return min(1024 * int(available[1]), *limits, 2**63)
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0  # Windows needs a library to ask


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
