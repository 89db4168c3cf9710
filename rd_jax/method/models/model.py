"""Which networks, applied how: what training, scoring and export have in common."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rd_jax.method.models.batch_norm import Dtype
from rd_jax.method.models.bottleneck import Kind, join_variables
from rd_jax.method.models.student import Reconstruction
from rd_jax.method.models.teacher import Features, Teacher, normalize, rescale


@dataclasses.dataclass(frozen=True)
class Model:
    """The networks of one training, without their variables.

    `scales` are those of the loss and the map, of 1, 2, 3 (strides 4, 8, 16). `normalize` scales
    images by ImageNet's mean and deviation, else to [0, 1]. `dtype` is that of computation;
    variables are float32. Student variables {'params', 'batch_stats'} each hold 'bottleneck' and
    'student'; for bottleneck "pre" the first is the teacher's.
    """

    backbone: str
    bottleneck: Kind = "mff_oce"
    scales: tuple[int, ...] = (1, 2, 3)
    normalize: bool = True
    dtype: Dtype = jnp.float32

    def teacher_features(self, teacher_variables: Any, images: jax.Array) -> Features:
        """uint8 images [B, H, W, 3] -> features of all scales; H and W multiples of 32."""
        scaled = normalize(images) if self.normalize else rescale(images)
        network: Any = Teacher(self.backbone, self.dtype)
        return network.apply(teacher_variables, scaled)

    def student_features(
        self, teacher_variables: Any, student_variables: Any, teacher_features: Features
    ) -> Features:
        """The student's features of all scales, with the stored statistics in BatchNorm."""
        network: Any = Reconstruction(self.backbone, self.bottleneck, self.dtype)
        variables = join_variables(self.bottleneck, teacher_variables, student_variables)
        return network.apply(variables, teacher_features)

    def train_features(
        self,
        teacher_variables: Any,
        student_variables: Any,
        teacher_features: Features,
        axis_name: str | None = None,
    ) -> tuple[Features, Mapping[str, Any]]:
        """As `student_features` with the batch's statistics, and the updated batch_stats."""
        network: Any = Reconstruction(self.backbone, self.bottleneck, self.dtype, axis_name)
        variables = join_variables(self.bottleneck, teacher_variables, student_variables)
        features, updated = network.apply(
            variables, teacher_features, train=True, mutable=["batch_stats"]
        )
        trained = student_variables["batch_stats"]
        return features, {name: updated["batch_stats"][name] for name in trained}

    def select(self, features: Features) -> Features:
        """The features of the chosen scales, shallow to deep."""
        return tuple(features[scale - 1] for scale in self.scales)
