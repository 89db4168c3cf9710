"""What `benchmarks.speed` times of PyTorch, on a GPU if it sees one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks import torch_baseline
from benchmarks.implementation import (
    Call,
    Implementation,
    cpu_model,
    peak_process_bytes,
    random_images,
)


def implementation(kind: str, is_cpu: bool) -> Implementation:
    """As the authors run it ("eager") or "tuned"."""
    on_gpu = torch.cuda.is_available() and not is_cpu
    device, is_tuned = "cuda" if on_gpu else "cpu", kind == "tuned"

    def job(
        make: Callable[[str, str, bool], Callable[[np.ndarray], Any]],
        backbone: str,
        size: int,
        batch: int,
    ) -> Call:
        return Call(partial(make(backbone, device, is_tuned), random_images(batch, size)))

    jobs = {
        "training step": partial(job, torch_baseline.make_train_step),
        "scoring": partial(job, torch_baseline.make_scorer),
    }
    if not on_gpu:
        facts = {"platform": "cpu", "device": cpu_model(), "torch": torch.__version__}
        return Implementation(facts, jobs, peak_process_bytes)
    facts = {"platform": "gpu", "device": torch.cuda.get_device_name(), "torch": torch.__version__}
    return Implementation(facts, jobs, torch.cuda.max_memory_allocated, _release)


def _release() -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
