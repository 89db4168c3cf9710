"""Forward distillation, the contrast of the paper's figure 1: a student that sees the image."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rd_jax import convert_teacher, create_train_state, load_teacher, make_train_step
from rd_jax.method.models import Model
from rd_jax.method.score import make_scorer
from rd_jax.method.train import TrainState
from tests.reference_weights import draw_images, draw_state_dict
from tests.trained import largest_difference


def inside(variables: dict) -> dict:
    return {collection: {"student": tree} for collection, tree in variables.items()}


def test_features_gradients_and_statistics_equal_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
    from benchmarks import torch_reference as reference
    from tests.make_golden import channels_last

    teacher, student = (reference.Teacher("resnet18").eval() for _ in range(2))
    drawn = []
    for module, sign in ((teacher, 1), (student, -1)):  # two networks, not one twice
        shapes = {k: v.shape for k, v in module.state_dict().items() if v.ndim}
        state = {k: sign * v if v.ndim == 4 else v for k, v in draw_state_dict(shapes).items()}
        module.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=False)
        drawn.append(convert_teacher(state, "resnet18"))
    images = draw_images(2, 64)
    scaled = reference.normalize(torch.from_numpy(images))
    model, variables = Model("resnet18", direction="forward"), inside(drawn[1])

    with torch.no_grad():
        expected = [channels_last(x) for x in student(scaled)]
        of_teacher = teacher(scaled)
    features = model.student_features(
        drawn[0], variables, images, model.teacher_features(drawn[0], images)
    )
    for own, other in zip(features, expected, strict=True):
        np.testing.assert_allclose(own, other, atol=1e-4 * np.abs(other).max())

    reference.per_position_loss(of_teacher, student.train()(scaled)).backward()
    optimizer = optax.sgd(1.0)  # a step is the gradient itself
    before = TrainState(**variables, opt_state=optimizer.init(variables["params"]), step=0)
    after, _ = jax.jit(make_train_step(model, optimizer))(before, drawn[0], images)
    gradients = jax.tree.map(lambda a, b: a - b, before.params, after.params)["student"]
    state = student.state_dict()
    state |= {name: parameter.grad for name, parameter in student.named_parameters()}
    values = {name: value.numpy() for name, value in state.items() if value.ndim}
    expected_after = convert_teacher(values, "resnet18")
    for own, other in zip(
        *map(jax.tree.leaves, (gradients, expected_after["params"])), strict=True
    ):
        # Differences of numbers of the size of 1 in float32.
        np.testing.assert_allclose(own, other, atol=1e-2 * np.abs(other).max() + 1e-6)
    statistics = after.batch_stats["student"]
    assert largest_difference(statistics, expected_after["batch_stats"]) < 1e-4


def test_all_of_the_student_learns_there_is_no_bottleneck_and_the_teacher_stays() -> None:
    model, optimizer = Model("tiny", direction="forward"), optax.adam(0.005)
    teacher, images = load_teacher("tiny", "random"), draw_images(4, 32)
    before = create_train_state(model, optimizer, jax.random.key(0))
    assert set(before.params) == set(before.batch_stats) == {"student"}
    shapes = jax.tree.map(jnp.shape, before.variables)
    assert shapes == inside(jax.tree.map(jnp.shape, teacher))
    after, _ = jax.jit(make_train_step(model, optimizer))(before, teacher, images)
    same = jax.tree.map(np.array_equal, before.variables, after.variables)
    assert not any(jax.tree.leaves(same))

    scorer = make_scorer(model)
    maps, _ = scorer(teacher, inside(teacher), images)
    assert np.abs(maps).max() < 1e-6  # of a student that is the teacher
    maps, _ = scorer(teacher, after.student_variables, images)
    assert maps.min() > 1e-3


def test_unselected_scales_get_no_gradient() -> None:
    model, optimizer = Model("tiny", direction="forward", scales=(1,)), optax.sgd(1.0)
    before = create_train_state(model, optimizer, jax.random.key(0))
    after, _ = jax.jit(make_train_step(model, optimizer))(
        before, load_teacher("tiny", "random"), draw_images(2, 32)
    )
    same = jax.tree.map(np.array_equal, before.params["student"], after.params["student"])
    moved = {name: not all(jax.tree.leaves(tree)) for name, tree in same.items()}
    assert moved == {name: name[:6] in ("conv1", "bn1", "layer1") for name in moved}
