"""The networks of a training, and how training, scoring and export apply them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from rd_jax.method.checks import check_choice, check_images
from rd_jax.method.models.batch_norm import Dtype
from rd_jax.method.models.bottleneck import Kind, join_variables
from rd_jax.method.models.init import example_shapes, variable_shapes
from rd_jax.method.models.student import Imitation, Reconstruction
from rd_jax.method.models.teacher import BACKBONES, Features, Teacher, normalize, rescale

Direction = Literal["reverse", "forward"]


@dataclasses.dataclass(frozen=True)
class Model:
    """The networks of one training, without their variables.

    Loss and map use `scales`, a choice of 1, 2, 3 (strides 4, 8, 16). With `normalize`, images are
    scaled by ImageNet's mean and deviation, else to [0, 1]. Networks compute in `dtype`; variables
    are float32. Student variables {'params', 'batch_stats'} each hold 'bottleneck' and 'student',
    but only 'student' for bottleneck "pre", which is the teacher's. With `direction` "forward" the
    student is a second teacher that sees the images, and there is no bottleneck: see `Imitation`.
    Raises ValueError for values that are not allowed.
    """

    backbone: str
    bottleneck: Kind = "mff_oce"
    scales: tuple[int, ...] = (1, 2, 3)
    normalize: bool = True
    dtype: Dtype = jnp.float32
    direction: Direction = "reverse"

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not allowed."""
        check_choice("backbone", self.backbone, BACKBONES)
        check_choice("bottleneck", self.bottleneck, get_args(Kind))
        check_choice("direction", self.direction, get_args(Direction))
        if not self.scales or list(self.scales) != sorted({1, 2, 3} & {*self.scales}):
            raise ValueError(
                f"scales={self.scales!r}: must be a non-empty ascending choice of (1, 2, 3)"
            )

    def teacher_features(self, teacher_variables: Any, images: jax.Array) -> Features:
        """Return the features of all scales of uint8 images [B, H, W, 3].

        Raises ValueError for other images and for sizes that are not multiples of 32.
        """
        check_images(images)
        network: Any = Teacher(self.backbone, self.dtype)
        return network.apply(teacher_variables, self._scaled(images))

    def student_features(
        self,
        teacher_variables: Any,
        student_variables: Any,
        images: jax.Array,
        teacher_features: Features,
    ) -> Features:
        """Return the student's features of all scales; BatchNorm uses the stored statistics."""
        variables = join_variables(self.bottleneck, teacher_variables, student_variables)
        return self._learner().apply(variables, self._seen_by_student(images, teacher_features))

    def train_features(
        self,
        teacher_variables: Any,
        student_variables: Any,
        images: jax.Array | None,
        teacher_features: Features,
        axis_name: str | None = None,
    ) -> tuple[Features, Mapping[str, Any]]:
        """Return features, with the batch's statistics in BatchNorm, and the new batch_stats."""
        seen = self._seen_by_student(images, teacher_features)
        variables = join_variables(self.bottleneck, teacher_variables, student_variables)
        features, updated = self._learner(axis_name).apply(
            variables, seen, train=True, mutable=["batch_stats"]
        )
        trained = student_variables["batch_stats"]
        return features, {name: updated["batch_stats"][name] for name in trained}

    def learnt_shapes(self) -> Any:
        """Return the variables of bottleneck and student as ShapeDtypeStructs."""
        images, features = example_shapes(self.backbone)
        seen = images if self.direction == "forward" else features
        return variable_shapes(self._learner(), seen)

    def select(self, features: Features) -> Features:
        """Return the features of the chosen scales, shallow to deep."""
        return tuple(features[scale - 1] for scale in self.scales)

    def _scaled(self, images: jax.Array) -> jax.Array:
        return normalize(images) if self.normalize else rescale(images)

    def _seen_by_student(self, images: Any, teacher_features: Features) -> Any:
        if self.direction == "forward" and images is None:
            raise ValueError("images=None: direction='forward' needs the images")
        return self._scaled(images) if self.direction == "forward" else teacher_features

    def _learner(self, axis_name: str | None = None) -> Any:
        if self.direction == "forward":
            return Imitation(self.backbone, self.dtype, axis_name)
        return Reconstruction(self.backbone, self.bottleneck, self.dtype, axis_name)
