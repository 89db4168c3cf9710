"""BatchNorm folded into convolutions changes no feature."""

import jax
import numpy as np
import pytest

from rd_jax import normalize
from rd_jax.method.models import Reconstruction, Teacher
from rd_jax.method.models.batch_norm import fold_batch_norm
from rd_jax.method.models.bottleneck import Kind, join_variables
from rd_jax.method.models.init import (
    example_shapes,
    init_variables,
    teacher_shapes,
    variable_shapes,
)
from tests.reference_weights import draw_images


def with_drawn_statistics(variables: dict) -> dict:
    """Scales, biases and statistics as a training would leave them."""
    rng = np.random.default_rng(1)

    def draw(path: tuple, value: np.ndarray) -> np.ndarray:
        if path[-1].key == "kernel":
            return value
        return rng.uniform(0.5, 1.5, value.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, variables)


@pytest.mark.parametrize(("backbone", "kind"), [("micro", "pre"), ("tiny50", "mff_oce")])
def test_folded_networks_give_the_same_features(backbone: str, kind: Kind) -> None:
    key = jax.random.key(0)
    teacher = init_variables(teacher_shapes(backbone, layer4=kind == "pre"), key)
    teacher = with_drawn_statistics(teacher)
    _, features = example_shapes(backbone)
    student = init_variables(variable_shapes(Reconstruction(backbone, kind), features), key)
    student = {
        name: {k: v for k, v in tree.items() if kind != "pre" or k == "student"}
        for name, tree in with_drawn_statistics(student).items()
    }

    @jax.jit
    def apply(teacher: dict, student: dict, images: jax.Array) -> tuple:
        features = Teacher(backbone).apply(teacher, normalize(images))
        variables = join_variables(kind, teacher, student)
        return features, Reconstruction(backbone, kind).apply(variables, features)

    images = draw_images(2, 32)
    expected = apply(teacher, student, images)
    folded = fold_batch_norm(teacher), fold_batch_norm(student)
    assert all(set(variables) == {"params"} for variables in folded)
    for actual, value in zip(
        jax.tree.leaves(apply(*folded, images)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(actual, value, rtol=1e-4, atol=1e-4 * np.abs(value).max())
    again = fold_batch_norm(folded[0])
    assert jax.tree.all(jax.tree.map(np.array_equal, again, folded[0]))
