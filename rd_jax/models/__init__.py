"""The three networks of Reverse Distillation, as Flax Linen modules."""

from rd_jax.models.bottleneck import Bottleneck
from rd_jax.models.resnet import BACKBONES, Teacher, normalize
from rd_jax.models.student import Reconstruction, Student

__all__ = ["BACKBONES", "Bottleneck", "Reconstruction", "Student", "Teacher", "normalize"]
