"""The three networks of Reverse Distillation, as Flax Linen modules."""

from rd_jax.method.models.bottleneck import Bottleneck
from rd_jax.method.models.model import Model
from rd_jax.method.models.student import Imitation, Reconstruction, Student
from rd_jax.method.models.teacher import BACKBONES, Features, Teacher, normalize

__all__ = [
    "BACKBONES",
    "Bottleneck",
    "Features",
    "Imitation",
    "Model",
    "Reconstruction",
    "Student",
    "Teacher",
    "normalize",
]
