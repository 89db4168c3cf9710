"""The method in PyTorch, in the structure and with the parameter names of the authors' code.

It was written from the paper and from torchvision's ResNet. The tests compare with it. It is the
baseline of `benchmarks.speed`. It needs the extra `parity`.
"""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

STAGES = {
    "resnet10": ("basic", (1, 1, 1, 1), 64),
    "resnet18": ("basic", (2, 2, 2, 2), 64),
    "resnet34": ("basic", (3, 4, 6, 3), 64),
    "resnet50": ("bottleneck", (3, 4, 6, 3), 64),
    "wide_resnet50_2": ("bottleneck", (3, 4, 6, 3), 128),
}


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


def deconv2x2(inputs: int, outputs: int) -> nn.Module:
    return nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)


class Block(nn.Module):
    """A basic or bottleneck residual block; `up` makes its strided convolution transposed."""

    def __init__(self, kind: str, inputs: int, planes: int, base_width: int, stride: int, up: bool):
        super().__init__()
        self.kind = kind
        outputs = planes * (4 if kind == "bottleneck" else 1)

        def resizing(i: int, o: int) -> nn.Module:
            return deconv2x2(i, o) if up else conv3x3(i, o, stride)

        if kind == "basic":
            self.conv1 = resizing(inputs, planes)
            self.bn1 = nn.BatchNorm2d(planes)
            self.conv2 = conv3x3(planes, planes)
            self.bn2 = nn.BatchNorm2d(planes)
        else:
            width = planes * base_width // 64
            self.conv1 = conv1x1(inputs, width)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = resizing(width, width)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = conv1x1(width, outputs)
            self.bn3 = nn.BatchNorm2d(outputs)
        if up:
            self.upsample = nn.Sequential(deconv2x2(inputs, outputs), nn.BatchNorm2d(outputs))
        elif stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.kind == "bottleneck":
            y = self.bn3(self.conv3(F.relu(y)))
        for name in ("upsample", "downsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return F.relu(x + y)


class Network(nn.Module):
    """The parts that the three networks share."""

    def __init__(self, backbone: str):
        super().__init__()
        self.kind, self.blocks, self.base_width = STAGES[backbone]
        self.expansion = 4 if self.kind == "bottleneck" else 1

    def stage(
        self, inputs: int, planes: int, blocks: int, stride: int = 1, up: bool = False
    ) -> nn.Module:
        outputs = planes * self.expansion
        first = Block(self.kind, inputs, planes, self.base_width, stride, up)
        rest = [
            Block(self.kind, outputs, planes, self.base_width, 1, False) for _ in range(blocks - 1)
        ]
        return nn.Sequential(first, *rest)


class Teacher(Network):
    def __init__(self, backbone: str):
        super().__init__(backbone)
        e = self.expansion
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = self.stage(64, 64, self.blocks[0])
        self.layer2 = self.stage(64 * e, 128, self.blocks[1], 2)
        self.layer3 = self.stage(128 * e, 256, self.blocks[2], 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
        a = self.layer1(x)
        b = self.layer2(a)
        return [a, b, self.layer3(b)]


class Bottleneck(Network):
    def __init__(self, backbone: str):
        super().__init__(backbone)
        e = self.expansion
        self.conv1 = conv3x3(64 * e, 128 * e, 2)
        self.bn1 = nn.BatchNorm2d(128 * e)
        self.conv2 = conv3x3(128 * e, 256 * e, 2)
        self.bn2 = nn.BatchNorm2d(256 * e)
        self.conv3 = conv3x3(128 * e, 256 * e, 2)
        self.bn3 = nn.BatchNorm2d(256 * e)
        self.bn_layer = self.stage(3 * 256 * e, 512, self.blocks[3], 2)

    def forward(self, x: Sequence[Tensor]) -> Tensor:
        a = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x[0]))))))
        b = F.relu(self.bn3(self.conv3(x[1])))
        return self.bn_layer(torch.cat([a, b, x[2]], 1))


class Student(Network):
    def __init__(self, backbone: str):
        super().__init__(backbone)
        e = self.expansion
        self.layer1 = self.stage(512 * e, 256, self.blocks[0], up=True)
        self.layer2 = self.stage(256 * e, 128, self.blocks[1], up=True)
        self.layer3 = self.stage(128 * e, 64, self.blocks[2], up=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        a = self.layer1(x)
        b = self.layer2(a)
        return [self.layer3(b), b, a]


def normalize(images: Tensor) -> Tensor:
    """Convert uint8 [N, H, W, 3] to float [N, 3, H, W] as ToTensor and Normalize do."""
    x = images.permute(0, 3, 1, 2).float() / 255
    mean, std = _mean_and_std(x.device)
    return (x - mean) / std


@cache
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ImageNet's values [3, 1, 1] on the device; they are sent once."""
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], device=device)
    return mean[:, None, None], std[:, None, None]


def per_position_loss(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    pairs = zip(teacher, student, strict=True)
    return torch.stack([(1 - F.cosine_similarity(t, s)).mean() for t, s in pairs]).sum()


def flattened_loss(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    pairs = [(t.flatten(1), s.flatten(1)) for t, s in zip(teacher, student, strict=True)]
    return torch.stack([(1 - F.cosine_similarity(t, s)).mean() for t, s in pairs]).sum()


def upsampled_map(teacher: Sequence[Tensor], student: Sequence[Tensor], size: int) -> Tensor:
    """Return the sum of the upsampled cosine distances [N, size, size], not blurred."""
    maps = [
        F.interpolate(
            (1 - F.cosine_similarity(t, s))[:, None], size, mode="bilinear", align_corners=True
        )
        for t, s in zip(teacher, student, strict=True)
    ]
    return torch.stack(maps).sum(0)[:, 0]
