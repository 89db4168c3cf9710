import json
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from rd_jax import (
    convert_rd4ad,
    convert_teacher,
    create_train_state,
    load_teacher,
    make_train_step,
)
from rd_jax.config import Config
from rd_jax.data.order import batch_indices, steps_until
from rd_jax.method.loss import LOSSES
from rd_jax.method.models import Model
from rd_jax.method.train import TrainState, make_parallel_train_steps
from rd_jax.run.build import model_of, optimizer_of
from rd_jax.run.loop import training
from tests.reference_weights import draw_images, draw_state_dict
from tests.trained import first_state, train_step_of

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("loss", ["per_position", "flattened"])
def test_three_steps_of_adam_equal_pytorch(config: Config, loss: str) -> None:
    golden = np.load(GOLDEN / f"adam_{loss}.npz")
    shapes = json.loads(str(np.load(GOLDEN / "resnet18.npz")["shapes"]))
    drawn = {name: draw_state_dict(shapes[name]) for name in shapes}
    teacher = convert_teacher(drawn["teacher"], "resnet18")
    variables = convert_rd4ad(drawn["bottleneck"], drawn["student"], "resnet18")
    config.backbone, config.loss = "resnet18", loss
    params = variables["params"]
    opt_state = optimizer_of(config).init(params)
    state = TrainState(params, variables["batch_stats"], opt_state, np.int32(0))
    step, losses = (
        train_step_of(config),
        [],
    )
    for i in range(3):
        state, metrics = step(state, teacher, draw_images(4, 64, seed=i))
        losses.append(float(metrics["loss"]))
        if i == 0:
            variance = state.batch_stats["bottleneck"]["bn_layer_0"]["bn1"]["var"]
            np.testing.assert_allclose(variance, golden["running_var"], rtol=1e-4)
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-3)


def largest_difference(a: Any, b: Any) -> float:
    def difference(x, y):
        return float(np.max(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64))))

    return max(jax.tree.leaves(jax.tree.map(difference, a, b)))


# Adam would turn the rounding of a gradient near zero into a whole step of either sign.
SGD = optax.sgd(0.005)


def run_steps(config: Config, images: np.ndarray, devices: list) -> list[TrainState]:
    """The states after each step on images [steps, B, H, W, 3], split over devices."""

    def in_dtype(x):
        return np.asarray(x, config.dtype if np.asarray(x).dtype == np.float32 else None)

    model = model_of(config)
    optimizer = optax.adam(config.learning_rate, 0.5, 0.999)
    teacher = jax.tree.map(in_dtype, load_teacher(config.backbone, "random"))
    state = jax.tree.map(in_dtype, create_train_state(model, optimizer, jax.random.key(0)))
    step = make_parallel_train_steps(model, optimizer, LOSSES[config.loss], 1, devices)
    states = []
    for batch in images:
        batch = batch.reshape(len(devices), 1, -1, *batch.shape[1:])
        state = jax.device_get(step(state, teacher, batch, 1)[0])  # placed alike, compiled once
        states.append(state)
    return states


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


def test_adam_on_several_devices_equals_one_device(config: Config) -> None:
    config.dtype = "float64"  # in float32 Adam magnifies the rounding
    images = draw_images(5 * 16, 32).reshape(5, 16, 32, 32, 3)
    with jax.enable_x64(True):
        one = run_steps(config, images, jax.devices()[:1])
        several = run_steps(config, images, jax.devices())
    assert one[-1].params["student"]["layer1_0"]["conv1"]["kernel"].dtype == np.float64
    assert largest_difference(one[0].params, one[-1].params) > 0.01
    assert largest_difference(one[-1], several[-1]) < 1e-5


def train_all(
    config: Config,
    num_images: int,
    max_steps: int,
    pause_at: tuple = (),
    optimizer: optax.GradientTransformation = SGD,
) -> tuple[TrainState, list[int], list[float]]:
    """The last state, the steps after each dispatch and all losses of a whole training."""
    model = model_of(config)
    steps_of = make_parallel_train_steps(model, optimizer, LOSSES[config.loss], max_steps)
    teacher = load_teacher("tiny", "random")
    state = create_train_state(model, optimizer, jax.random.key(0))
    images, steps, losses = draw_images(num_images, 32), [0], []
    dispatches = training(
        *(steps_of, max_steps, teacher, images, state),
        last_step=steps_until(config.num_epochs, num_images, config.batch_size),
        batch_size=config.batch_size,
        seed=config.seed,
        pause_at=pause_at,
    )
    for state, step, metrics in dispatches:  # noqa: B007
        losses += [float(loss) for loss in metrics["loss"][: step - steps[-1]]]
        steps.append(step)
    return jax.device_get(state), steps, losses


def test_several_steps_in_one_dispatch_equal_single_steps(config: Config) -> None:
    config.num_epochs = 3
    single, steps, losses = train_all(config, 20, 1)
    assert steps == list(range(9))  # 3 x 20 images in batches of 8
    fused, fused_steps, fused_losses = train_all(config, 20, 3, pause_at=(4,))
    assert fused_steps == [0, 3, 4, 7, 8]
    assert largest_difference(single, fused) < 1e-5
    np.testing.assert_allclose(losses, fused_losses, atol=1e-5)


@pytest.mark.parametrize(("num_images", "batch_size"), [(10, 4), (3, 8), (7, 7), (209, 16)])
def test_every_image_is_used_equally_often(num_images: int, batch_size: int) -> None:
    counts = np.zeros(num_images, int)
    for step in range(50):
        counts += np.bincount(batch_indices(0, step, num_images, batch_size), minlength=num_images)
        assert counts.max() - counts.min() <= 1
    epochs = 6
    used = steps_until(epochs, num_images, batch_size) * batch_size
    assert used - batch_size < epochs * num_images <= used


def test_order_is_a_function_of_seed_and_step() -> None:
    order = [batch_indices(1, step, 10, 4) for step in (5, 0, 5)]
    np.testing.assert_array_equal(order[0], order[2])
    first, other = (
        np.concatenate([batch_indices(seed, s, 100, 50) for s in (0, 1)]) for seed in (1, 2)
    )
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, np.concatenate([batch_indices(1, s, 100, 50) for s in (2, 3)]))


def test_training_lowers_the_loss(config: Config) -> None:
    config.num_epochs = 3
    _, _, losses = train_all(config, 20, 1, optimizer=optax.adam(0.005))
    assert losses[-1] < 0.8 * losses[0]


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
