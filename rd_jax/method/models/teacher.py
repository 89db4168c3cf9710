"""The teacher: a ResNet whose first three stages give the features (paper, figure 3)."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rd_jax.method.models.batch_norm import BatchNorm, Dtype
from rd_jax.method.models.blocks import BasicBlock, BottleneckBlock, Conv, Resize

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Features = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class Backbone:
    """The numbers in which backbones differ.

    Stages 1 to 4 have `planes` times 1, 2, 4 and 8 planes; `base_width` 128 doubles the width of
    the 3x3 convolutions in bottleneck blocks.
    """

    block: type[BasicBlock] | type[BottleneckBlock]
    stage_sizes: tuple[int, int, int, int]
    base_width: int = 64
    planes: int = 64

    def stage(
        self, name: str, width: int, num_blocks: int, resize: Resize, norm: partial, dtype: Dtype
    ) -> nn.Sequential:
        """Return a sequence of blocks; the first resizes. `width` is in units of `planes`."""
        block = partial(self.block, width * self.planes, norm, base_width=self.base_width)
        blocks = [
            block(resize if i == 0 else "same", dtype=dtype, name=f"{name}_{i}")
            for i in range(num_blocks)
        ]
        return nn.Sequential(blocks)


BACKBONES = {
    "resnet10": Backbone(BasicBlock, (1, 1, 1, 1)),
    "resnet18": Backbone(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Backbone(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Backbone(BottleneckBlock, (3, 4, 6, 3)),
    "wide_resnet50_2": Backbone(BottleneckBlock, (3, 4, 6, 3), base_width=128),
}


def rescale(images: ArrayLike) -> jax.Array:
    """Scale uint8 images to float32 in [0, 1], the authors' input for grey one-class sets."""
    return jnp.asarray(images, jnp.float32) / 255


def normalize(images: ArrayLike) -> jax.Array:
    """Scale uint8 RGB images [B, H, W, 3] to float32 with ImageNet mean 0 and deviation 1."""
    mean = 255 * jnp.array(IMAGENET_MEAN, jnp.float32)
    std = 255 * jnp.array(IMAGENET_STD, jnp.float32)
    return (jnp.asarray(images, jnp.float32) - mean) / std


class Teacher(nn.Module):
    """The ImageNet encoder E (paper, figure 3), frozen. `Imitation` trains a second one.

    `Teacher(backbone).apply(variables, images)` maps normalised float images [B, H, W, 3] to
    `Features`: ([B, H/4, W/4, C], [B, H/8, W/8, 2C], [B, H/16, W/16, 4C]) in `dtype`, with C 64
    for ResNet-10, -18 and -34 and 256 for ResNet-50 and WideResNet-50. H and W are multiples of 32.
    `train` uses the batch's statistics in BatchNorm and updates the collection `batch_stats`.
    """

    backbone: str
    dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> Features:
        backbone = BACKBONES[self.backbone]
        norm = partial(BatchNorm, train=train, axis_name=self.axis_name, dtype=self.dtype)
        x = Conv(backbone.planes, (7, 7), strides=2, padding=3, dtype=self.dtype, name="conv1")(
            images
        )
        x = nn.relu(norm(name="bn1")(x))
        # Pad with zeros, harmless after ReLU: exporters to ONNX lack the padding of max_pool.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="VALID")
        features = []
        for i, width in enumerate((1, 2, 4)):
            resize: Resize = "same" if i == 0 else "down"
            num_blocks = backbone.stage_sizes[i]
            x = backbone.stage(f"layer{i + 1}", width, num_blocks, resize, norm, self.dtype)(x)
            features.append(x)
        return tuple(features)
