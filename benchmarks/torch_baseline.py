"""The training step and the scorer in PyTorch, as the authors run them and tuned."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import torch_reference as reference


def _networks(backbone: str, device: str, tuned: bool) -> list[nn.Module]:
    layout = torch.channels_last if tuned else torch.contiguous_format
    kinds: tuple[Any, ...] = (reference.Teacher, reference.Bottleneck, reference.Student)
    torch.manual_seed(0)
    teacher, *trained = [kind(backbone).to(device, memory_format=layout) for kind in kinds]
    return [teacher.eval().requires_grad_(False), *trained]


def _sent(images: np.ndarray, device: str, tuned: bool) -> Tensor:
    x = torch.from_numpy(images).to(device, non_blocking=tuned)
    layout = torch.channels_last if tuned else torch.contiguous_format
    return reference.normalize(x).contiguous(memory_format=layout)


def _precision(device: str, tuned: bool) -> torch.autocast | nullcontext:
    """Mixed precision is tuning on a GPU; a CPU without its instructions slows down."""
    if tuned and device == "cuda":
        torch.backends.cudnn.benchmark = True
        return torch.autocast(device, torch.bfloat16)
    return nullcontext()


def make_train_step(backbone: str, device: str, tuned: bool) -> Callable[[np.ndarray], float]:
    """A step from uint8 images on the host to the loss on the host, which waits for the device.

    Tuned: channels_last; on a GPU also bfloat16 autocast, fused Adam and cudnn.benchmark.
    """
    teacher, bottleneck, student = _networks(backbone, device, tuned)
    parameters = [*bottleneck.parameters(), *student.parameters()]
    fused = {"fused": True} if tuned and device == "cuda" else {}
    optimizer = torch.optim.Adam(parameters, lr=0.005, betas=(0.5, 0.999), **fused)
    precision = _precision(device, tuned)

    def train_step(images: np.ndarray) -> float:
        with precision:
            with torch.no_grad():
                teacher_features = teacher(_sent(images, device, tuned))
            student_features = student(bottleneck(teacher_features))
            loss = reference.per_position_loss(teacher_features, student_features)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return train_step


def make_scorer(backbone: str, device: str, tuned: bool) -> Callable[[np.ndarray], np.ndarray]:
    """From uint8 images on the host to scores on the host; the map is not even blurred."""
    teacher, bottleneck, student = _networks(backbone, device, tuned)
    bottleneck.eval()
    student.eval()
    precision = _precision(device, tuned)

    @torch.no_grad()
    def scorer(images: np.ndarray) -> np.ndarray:
        with precision:
            features = teacher(_sent(images, device, tuned))
            maps = reference.upsampled_map(features, student(bottleneck(features)), images.shape[1])
        return maps.amax((1, 2)).float().cpu().numpy()

    return scorer
