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
# Explicit padding: "SAME" pads a strided convolution on the other side than PyTorch does.
Conv3x3 = partial(Conv, kernel_size=(3, 3), padding=1, conv_general_dilated=convolve)


def convolve_transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve transposed, stride h, w: [B, H, W, I] with [I, h, w, O] -> [B, h*H, w*W, O].

    The patches that it writes do not overlap, so it is a matrix product followed by
    depth-to-space; the order of the kernel's axes saves a copy of it.
    """
    batch, height, width, channels = x.shape
    _, kernel_height, kernel_width, features = kernel.shape
    y = x @ kernel.reshape(channels, -1)
    y = y.reshape(batch, height, width, kernel_height, kernel_width, features)
    y = y.transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(batch, kernel_height * height, kernel_width * width, features)


class TransposedConv2x2(nn.Module):
    """Transposed convolution, kernel 2, stride 2: [B, H, W, I] -> [B, 2H, 2W, O].

    The kernel is [I, 2, 2, O] and starts as in PyTorch, whose fan-out is here 4 times I.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], 2, 2, self.features)
        kernel = self.param("kernel", transposed_kaiming_normal, shape, jnp.float32)
        return convolve_transposed(x.astype(self.dtype), kernel.astype(self.dtype))


def _resizing_conv(
    features: int, kernel: Literal[1, 3], resize: Resize, dtype: Dtype, name: str
) -> nn.Module:
    """Return a convolution that keeps, halves or doubles height and width."""
    if resize == "up":
        return TransposedConv2x2(features, dtype=dtype, name=name)
    conv = Conv3x3 if kernel == 3 else Conv1x1
    return conv(features, strides=2 if resize == "down" else 1, dtype=dtype, name=name)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-10 to -34); "up" turns the first around."""

    planes: int
    norm: partial[BatchNorm]
    resize: Resize = "same"
    base_width: int = 64
    dtype: Dtype = jnp.float32
    expansion: ClassVar[int] = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = _resizing_conv(self.planes, 3, self.resize, self.dtype, "conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = Conv3x3(self.planes, dtype=self.dtype, name="conv2")(y)
        y = self.norm(name="bn2")(y)
        return nn.relu(y + _shortcut(self, x, self.planes))


class BottleneckBlock(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut (ResNet-50); "up" turns the 3x3 around."""

    planes: int
    norm: partial[BatchNorm]
    resize: Resize = "same"
    base_width: int = 64
    dtype: Dtype = jnp.float32
    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = self.planes * self.base_width // 64
        y = Conv1x1(width, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = _resizing_conv(width, 3, self.resize, self.dtype, "conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = Conv1x1(self.planes * self.expansion, dtype=self.dtype, name="conv3")(y)
        y = self.norm(name="bn3")(y)
        return nn.relu(y + _shortcut(self, x, self.planes * self.expansion))


def _shortcut(block: BasicBlock | BottleneckBlock, x: jax.Array, features: int) -> jax.Array:
    """Return the block's input, projected where its shape is not that of the output."""
    if block.resize == "same" and x.shape[-1] == features:
        return x
    name = "upsample" if block.resize == "up" else "downsample"
    y = _resizing_conv(features, 1, block.resize, block.dtype, f"{name}_0")(x)
    return block.norm(name=f"{name}_1")(y)
