"""The student, a backbone in reverse order, and the modules of all that learns."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from rd_jax.method.models.batch_norm import BatchNorm, Dtype
from rd_jax.method.models.bottleneck import Bottleneck, Kind
from rd_jax.method.models.teacher import BACKBONES, Features, Teacher


class Student(nn.Module):
    """The decoder D (paper, figure 3): embedding [B, H/32, W/32, C] -> `Features`.

    It has three stages, deepest first, with as many blocks as the backbone's stages 1, 2 and 3.
    Each doubles height and width with a transposed 2x2 convolution. The features come out shallow
    to deep, in the shapes of the teacher's. `train` uses the batch's statistics in BatchNorm and
    updates the collection `batch_stats`.
    """

    backbone: str
    dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, embedding: jax.Array, train: bool = False) -> Features:
        backbone = BACKBONES[self.backbone]
        norm = partial(BatchNorm, train=train, axis_name=self.axis_name, dtype=self.dtype)
        x, deep_to_shallow = embedding, []
        for i, width in enumerate((4, 2, 1)):
            num_blocks = backbone.stage_sizes[i]
            x = backbone.stage(f"layer{i + 1}", width, num_blocks, "up", norm, self.dtype)(x)
            deep_to_shallow.append(x)
        return tuple(reversed(deep_to_shallow))


class Reconstruction(nn.Module):
    """Bottleneck and student, D(OCE(MFF(features))): the teacher's `Features` -> the student's.

    Its variables are those of `Bottleneck` under "bottleneck" and of `Student` under "student".
    """

    backbone: str
    kind: Kind = "mff_oce"
    dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: Features, train: bool = False) -> Features:
        bottleneck = Bottleneck(
            self.backbone, self.kind, self.dtype, self.axis_name, name="bottleneck"
        )
        student = Student(self.backbone, self.dtype, self.axis_name, name="student")
        return student(bottleneck(features, train), train)


class Imitation(nn.Module):
    """The student of forward distillation (Wang et al., BMVC 2021): images -> `Features`.

    The paper contrasts it in figure 1. It has the teacher's structure and sees the normalised
    images [B, H, W, 3] themselves. It keeps the variables of `Teacher` under "student".
    """

    backbone: str
    dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> Features:
        student = Teacher(self.backbone, self.dtype, self.axis_name, name="student")
        return student(images, train)
