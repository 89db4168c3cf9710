"""Layers and residual blocks that the teacher, the bottleneck and the student share."""

from functools import partial
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from rd_jax.method.models.batch_norm import BatchNorm, Dtype
from rd_jax.method.models.cpu import convolve

Resize = Literal["same", "down", "up"]

# PyTorch's kaiming_normal_(mode="fan_out", nonlinearity="relu").
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
transposed_kaiming_normal = nn.initializers.variance_scaling(
    2.0, "fan_out", "normal", in_axis=-1, out_axis=0
)

Conv = partial(nn.Conv, use_bias=False, kernel_init=kaiming_normal)
Conv1x1 = partial(Conv, kernel_size=(1, 1), padding=0, conv_general_dilated=convolve)
# The padding is explicit: "SAME" pads a strided convolution on the other side than PyTorch.
Conv3x3 = partial(Conv, kernel_size=(3, 3), padding=1, conv_general_dilated=convolve)


class TransposedConv2x2(nn.Module):
    """Transposed convolution, kernel 2, stride 2: [B, H, W, I] -> [B, 2H, 2W, O].

    Its output patches do not overlap, so it is a matrix product followed by depth-to-space. The
    kernel is [I, 2, 2, O], which saves a copy of it. It starts as in PyTorch, where the fan-out of
    a transposed kernel is 4 times I.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        shape = (channels, 2, 2, self.features)
        kernel = self.param("kernel", transposed_kaiming_normal, shape, jnp.float32)
        y = x.astype(self.dtype) @ kernel.astype(self.dtype).reshape(channels, -1)
        y = y.reshape(batch, height, width, *shape[1:]).transpose(0, 1, 3, 2, 4, 5)
        return y.reshape(batch, 2 * height, 2 * width, self.features)


class Block(nn.Module):
    """The fields of both kinds of residual blocks, and the layers that change height and width."""

    planes: int
    norm: partial[BatchNorm]
    resize: Resize = "same"
    base_width: int = 64
    dtype: Dtype = jnp.float32
    expansion: ClassVar[int]

    def resized(self, x: jax.Array, conv: partial[nn.Conv], features: int, name: str) -> jax.Array:
        """Return a convolution of `x` that keeps, halves or doubles height and width."""
        if self.resize == "up":
            return TransposedConv2x2(features, dtype=self.dtype, name=name)(x)
        strides = 2 if self.resize == "down" else 1
        return conv(features, strides=strides, dtype=self.dtype, name=name)(x)

    def shortcut(self, x: jax.Array) -> jax.Array:
        """Return the block's input, projected if its shape differs from the output's."""
        features = self.planes * self.expansion
        if self.resize == "same" and x.shape[-1] == features:
            return x
        name = "upsample" if self.resize == "up" else "downsample"
        return self.norm(name=f"{name}_1")(self.resized(x, Conv1x1, features, f"{name}_0"))


class BasicBlock(Block):
    """Two 3x3 convolutions and a shortcut (ResNet-10 to -34); "up" transposes the first."""

    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.resized(x, Conv3x3, self.planes, "conv1")
        y = nn.relu(self.norm(name="bn1")(y))
        y = Conv3x3(self.planes, dtype=self.dtype, name="conv2")(y)
        y = self.norm(name="bn2")(y)
        return nn.relu(y + self.shortcut(x))


class BottleneckBlock(Block):
    """1x1, 3x3, 1x1 convolutions and a shortcut (ResNet-50); "up" transposes the second."""

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = self.planes * self.base_width // 64
        y = Conv1x1(width, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.resized(y, Conv3x3, width, "conv2")
        y = nn.relu(self.norm(name="bn2")(y))
        y = Conv1x1(self.planes * self.expansion, dtype=self.dtype, name="conv3")(y)
        y = self.norm(name="bn3")(y)
        return nn.relu(y + self.shortcut(x))
