"""What a benchmark may use: so many seconds, and one GPU; without JAX."""

import os

_GPU_BUDGET = 480.0  # seconds


def budget_of(asked: float | None, platform: str) -> float | None:
    """The seconds asked for; if none are, those of a GPU, and on a CPU no limit."""
    return _GPU_BUDGET if asked is None and platform != "cpu" else asked


def deadline_of(start: float, budget: float | None) -> float | None:
    """On the clock of `start`; None without a budget."""
    return start + budget if budget else None


def one_gpu() -> str:
    """CUDA_VISIBLE_DEVICES with the first alone of those that may be used."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
