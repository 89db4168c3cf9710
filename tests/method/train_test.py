from functools import cache
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from rd_jax import (
    create_train_state,
    load_teacher,
    make_train_step,
)
from rd_jax.config import Config
from rd_jax.method.loss import LOSSES
from rd_jax.method.models import Model
from rd_jax.method.train import TrainState, make_parallel_train_steps
from tests.reference_weights import draw_images
from tests.trained import first_state, largest_difference, train_step_of

GOLDEN = Path(__file__).parents[1] / "golden"


@cache
def step_alone(model: Model, loss: str) -> tuple[TrainState, dict, np.ndarray, TrainState]:
    """A state, teacher and images, and the state after a step of gradient descent on one device."""
    optimizer = optax.sgd(1.0)
    before = create_train_state(model, optimizer, jax.random.key(0))
    teacher, images = load_teacher("tiny", "random"), draw_images(8, 32)
    after, _ = jax.jit(make_train_step(model, optimizer, LOSSES[loss]))(before, teacher, images)
    return before, teacher, images, after


@pytest.mark.parametrize(
    ("spread", "loss"),
    [("pmap", "per_position"), ("pmap", "flattened"), ("shard_map", "per_position")],
)
def test_gradients_over_a_mapped_axis_are_those_of_the_whole_batch(spread: str, loss: str) -> None:
    model, optimizer = Model("tiny"), optax.sgd(1.0)  # a step is the gradient itself
    before, teacher, images, alone = step_alone(model, loss)
    step, devices = make_train_step(model, optimizer, LOSSES[loss], "batch"), jax.devices()
    if spread == "pmap":
        mapped = jax.pmap(step, "batch", in_axes=(None, None, 0), out_axes=None)
        images = images.reshape(len(devices), -1, *images.shape[1:])
    else:
        mesh, whole = Mesh(np.array(devices), ("batch",)), PartitionSpec()
        specs = (whole, whole, PartitionSpec("batch"))
        mapped = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=whole))
    together, _ = mapped(before, teacher, images)
    gradients, expected = (
        jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), before.params, after.params)
        for after in (together, alone)
    )
    for own, of_all in zip(*map(jax.tree.leaves, (gradients, expected)), strict=True):
        assert np.abs(of_all).max() > 1e-4
        np.testing.assert_allclose(own, of_all, atol=1e-4 * np.abs(of_all).max())
    assert largest_difference(together.batch_stats, alone.batch_stats) < 1e-5


def test_the_average_weighs_what_each_step_ended_with_and_no_initial_values() -> None:
    model, optimizer, ema = Model("micro"), optax.sgd(0.1), 0.5
    state = create_train_state(model, optimizer, jax.random.key(0), ema)
    steps = make_parallel_train_steps(model, optimizer, LOSSES["mixed"], 1, ema=ema)
    teacher, ends = load_teacher("micro", "random"), []
    for seed in range(12):
        batch = draw_images(8, 32, seed).reshape(4, 1, 2, 32, 32, 3)
        state, _ = steps(state, teacher, batch, 1)
        ends.append(jax.device_get(state.variables))
    # Of the i-th of n ends: what it brought in, times what every later step left of it.
    kept = np.minimum(ema, np.arange(12) / (np.arange(12) + 9))
    shares = np.array([(1 - kept[i]) * np.prod(kept[i + 1 :]) for i in range(12)])
    assert shares.sum() == pytest.approx(1)
    assert kept[-2:] == pytest.approx(ema)
    expected = jax.tree.map(lambda *x: np.tensordot(shares, np.stack(x), 1), *ends)
    assert largest_difference(state.student_variables, expected) < 1e-5
    assert largest_difference(state.variables, expected) > 1e-4


@pytest.mark.parametrize(("of_state", "of_step"), [(0.0, 0.9), (0.9, 0.0)])
def test_an_average_belongs_to_state_and_step(of_state: float, of_step: float) -> None:
    model, optimizer = Model("micro"), optax.sgd(0.1)
    state = create_train_state(model, optimizer, jax.random.key(0), of_state)
    step = make_train_step(model, optimizer, ema=of_step)
    with pytest.raises(ValueError, match="give create_train_state and make_train_step the same"):
        step(state, load_teacher("micro", "random"), draw_images(2, 32))


def test_unselected_scales_get_no_gradient(config: Config) -> None:
    config.scales = (3,)
    before = first_state(config)
    step = train_step_of(config)
    after, _ = step(before, load_teacher("tiny", "random"), draw_images(2, 32))
    moved = {
        name: any(
            not np.array_equal(x, y)
            for x, y in zip(
                jax.tree.leaves(before.params["student"][name]),
                jax.tree.leaves(after.params["student"][name]),
                strict=True,
            )
        )
        for name in before.params["student"]
    }
    assert moved == {name: name.startswith("layer1") for name in moved}
