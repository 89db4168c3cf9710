"""Prepare the timed parts of PyTorch, as the authors run it and tuned, on a GPU if it has one."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import torch_reference as reference
from benchmarks.speed.worker import Call, peak_process_bytes, random_images

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"


def facts() -> dict[str, Any]:
    """Return PyTorch's device and version."""
    device = torch.cuda.get_device_name() if ON_GPU else "cpu"
    return {"platform": "gpu" if ON_GPU else "cpu", "device": device, "torch": torch.__version__}


def peak_bytes() -> int:
    """Return the most bytes that the device ever held; on a CPU, this process."""
    return torch.cuda.max_memory_allocated() if ON_GPU else peak_process_bytes()


class Networks:
    """The three networks. Tuned means channels_last and, on a GPU, bfloat16 autocast.

    Mixed precision is for a GPU only: a CPU without instructions for bfloat16 slows down.
    """

    def __init__(self, backbone: str, is_tuned: bool):
        self.layout = torch.channels_last if is_tuned else torch.contiguous_format
        self.is_mixed = is_tuned and ON_GPU
        torch.backends.cudnn.benchmark = self.is_mixed
        torch.manual_seed(0)
        self.teacher = self._placed(reference.Teacher(backbone)).eval().requires_grad_(False)
        self.bottleneck = self._placed(reference.Bottleneck(backbone))
        self.student = self._placed(reference.Student(backbone))

    def _placed(self, network: Any) -> nn.Module:
        return network.to(DEVICE, memory_format=self.layout)

    def teacher_features(self, images: Tensor) -> list[Tensor]:
        """Return the teacher's features of uint8 images on the host."""
        x = reference.normalize(images.to(DEVICE, non_blocking=self.is_mixed))
        with torch.no_grad():
            return self.teacher(x.contiguous(memory_format=self.layout))

    def features(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the teacher's and the student's features of uint8 images on the host."""
        teacher_features = self.teacher_features(images)
        return teacher_features, self.student(self.bottleneck(teacher_features))

    def precision(self) -> torch.autocast | nullcontext:
        """Return the context of the forward pass."""
        return torch.autocast(DEVICE, torch.bfloat16) if self.is_mixed else nullcontext()


def training_step(
    backbone: str, size: int, batch: int, is_tuned: bool, keeps: bool = False
) -> Call:
    """Prepare a step that ends with the loss on the host, so that it waits for the device.

    It begins with images on the host. If it `keeps` features, it begins with the teacher's features
    on the device. Tuned: see `Networks`; on a GPU also fused Adam and cudnn.benchmark.
    """
    networks = Networks(backbone, is_tuned)
    parameters = [*networks.bottleneck.parameters(), *networks.student.parameters()]
    fused = {"fused": True} if networks.is_mixed else {}
    optimizer = torch.optim.Adam(parameters, lr=0.005, betas=(0.5, 0.999), **fused)
    images = torch.from_numpy(random_images(batch, size))
    with networks.precision():
        kept = networks.teacher_features(images) if keeps else None

    def train_step() -> float:
        with networks.precision():
            teacher_features = networks.teacher_features(images) if kept is None else kept
            student_features = networks.student(networks.bottleneck(teacher_features))
            loss = reference.per_position_loss(teacher_features, student_features)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Call(train_step)


def scoring(backbone: str, size: int, batch: int, is_tuned: bool) -> Call:
    """Prepare to score, from images on the host to scores on the host.

    rd_jax does more: it blurs the maps and fetches them.
    """
    networks = Networks(backbone, is_tuned)
    networks.bottleneck.eval()
    networks.student.eval()
    images = torch.from_numpy(random_images(batch, size))

    @torch.no_grad()
    def score() -> Any:
        with networks.precision():
            maps = reference.upsampled_map(*networks.features(images), size)
        return maps.amax((1, 2)).float().cpu().numpy()

    return Call(score)
