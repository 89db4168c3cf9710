"""The loop over steps: how they are dispatched changes nothing of what is trained."""

import jax
import numpy as np
import optax
import pytest

from rd_jax import Model, create_train_state, load_teacher
from rd_jax.config import Config
from rd_jax.data.order import steps_until
from rd_jax.method.loss import LOSSES
from rd_jax.method.train import Batch, TrainState, make_parallel_train_steps
from rd_jax.run.batches import Batches, streamed
from rd_jax.run.loop import dispatches, steps_per_dispatch
from rd_jax.run.plan import optimizer_of, teacher_of, trained_model_of
from tests.reference_weights import draw_images
from tests.run.hosts_worker import wide
from tests.trained import largest_difference

# Adam would turn the rounding of a gradient near zero into a whole step of either sign.
SGD = optax.sgd(0.005)


def run_steps(config: Config, images: np.ndarray, devices: list) -> list[TrainState]:
    """The states after each step on images [steps, B, H, W, 3], split over devices."""

    model = Model(config.backbone, dtype=np.float64)
    optimizer = optax.adam(config.learning_rate, 0.5, 0.999)
    teacher = wide(load_teacher(config.backbone, "random"))
    state = wide(create_train_state(model, optimizer, jax.random.key(0)))
    step = make_parallel_train_steps(model, optimizer, LOSSES[config.loss], 1, devices)
    states = []
    for batch in images:
        batch = batch.reshape(len(devices), 1, -1, *batch.shape[1:])
        state, _ = step(state, teacher, Batch(batch), np.int32(1))
        state = jax.device_get(state)  # placed alike, compiled once
        states.append(state)
    return states


def test_adam_on_several_devices_equals_one_device(config: Config) -> None:
    images = draw_images(5 * 8, 32).reshape(5, 8, 32, 32, 3)
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
    model = trained_model_of(config)
    steps_of = make_parallel_train_steps(model, optimizer, LOSSES[config.loss], max_steps)
    teacher = teacher_of(config).variables
    first = create_train_state(model, optimizer, jax.random.key(0))
    images, steps, losses = draw_images(num_images, 32), [0], []
    take = streamed(images, np.arange(num_images))
    batches = Batches(take, num_images, config.batch_size, config.seed)
    last_step = steps_until(config.num_epochs, num_images, config.batch_size)
    pauses = (*pause_at, last_step)
    for state, step, metrics in dispatches(steps_of, max_steps, teacher, batches, first, pauses):  # noqa: B007
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


def test_training_lowers_the_loss(config: Config) -> None:
    config.num_epochs, config.batch_size = 3, 4
    _, _, losses = train_all(config, 20, 1, optimizer=optimizer_of(config))
    assert losses[-1] < 0.8 * losses[0]


def test_a_dispatch_takes_as_many_steps_as_pay_and_memory_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mib = 2**20
    assert steps_per_dispatch(mib) == 1  # on CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert steps_per_dispatch(mib) == 16
    assert steps_per_dispatch(100 * mib) == 5
    assert steps_per_dispatch(1000 * mib) == 1
