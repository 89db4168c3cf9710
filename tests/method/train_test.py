import json
from functools import cache
from pathlib import Path

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
from rd_jax.method.loss import LOSSES
from rd_jax.method.models import Model, cpu
from rd_jax.method.train import TrainState, make_parallel_train_steps
from rd_jax.run.build import optimizer_of
from tests.reference_weights import draw_images, draw_state_dict
from tests.trained import first_state, largest_difference, train_step_of

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
    step, losses = train_step_of(config), []
    for i in range(3):
        state, metrics = step(state, teacher, draw_images(4, 64, seed=i))
        losses.append(float(metrics["loss"]))
        if i == 0:
            variance = state.batch_stats["bottleneck"]["bn_layer_0"]["bn1"]["var"]
            np.testing.assert_allclose(variance, golden["running_var"], rtol=1e-4)
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-3)


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


def test_the_average_weighs_what_each_step_ended_with_and_no_initial_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "_is_on_cpu", lambda: False)  # compiles faster
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
