"""Networks, variables and steps that several test modules share; each is compiled once."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np
import optax

from rd_jax import Model, make_train_step, normalize
from rd_jax.method.loss import LOSSES
from rd_jax.method.models import Bottleneck, Student, Teacher
from rd_jax.method.models.init import init_variables, teacher_shapes

OPTIMIZER = optax.sgd(0.1)


def only(variables: dict, name: str) -> dict:
    return {collection: tree[name] for collection, tree in variables.items()}


@cache
def teacher_of(backbone: str) -> Any:
    return init_variables(teacher_shapes(backbone), jax.random.key(0))


@cache
def step_of(model: Model, loss: str = "mixed") -> Callable:
    """The jitted step of `OPTIMIZER`."""
    return jax.jit(make_train_step(model, OPTIMIZER, LOSSES[loss]))


def descents(before: Any, after: Any) -> Any:
    """The gradients of a step of `OPTIMIZER`."""
    return jax.tree.map(lambda a, b: (np.asarray(a) - np.asarray(b)) / 0.1, before, after)


@cache
def forward_of(backbone: str) -> Callable:
    """Jitted: both variables and uint8 images to teacher's features, embedding and student's."""

    @jax.jit
    def forward(teacher: Any, variables: Any, images: jax.Array) -> tuple:
        features = Teacher(backbone).apply(teacher, normalize(images))
        embedding = Bottleneck(backbone).apply(only(variables, "bottleneck"), features)
        return features, embedding, Student(backbone).apply(only(variables, "student"), embedding)

    return forward
