"""The step: its gradients on one device and several, its average, and what it refuses."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from rd_jax import (
    Model,
    create_train_state,
    make_distillation_step,
    make_scorer,
    make_train_step,
)
from rd_jax.method.loss import LOSSES
from rd_jax.method.train import Batch, TrainState, make_parallel_train_steps, train_state_shapes
from tests.method.networks import OPTIMIZER, descents, step_of, teacher_of
from tests.reference_weights import draw_images

MODEL, EMA = Model("tiny"), 0.5
FORWARD = Model("tiny", direction="forward", scales=(1,))


def largest_difference(a: Any, b: Any) -> float:
    def difference(x: Any, y: Any) -> float:
        return float(np.max(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64))))

    return max(jax.tree.leaves(jax.tree.map(difference, a, b)))


def moved(before: dict, after: dict) -> dict[str, bool]:
    """Which blocks of the student changed."""
    same = jax.tree.map(np.array_equal, before["student"], after["student"])
    return {name: not all(jax.tree.leaves(tree)) for name, tree in same.items()}


@cache
def parallel_step() -> jax.stages.Wrapped:
    return make_parallel_train_steps(MODEL, OPTIMIZER, LOSSES["mixed"], 1, ema=EMA)


def first_state(ema: float = 0.0) -> TrainState:
    return create_train_state(MODEL, OPTIMIZER, jax.random.key(0), ema)


@pytest.mark.parametrize("spread", ["pmap", "shard_map"])
def test_gradients_over_several_devices_are_those_of_the_whole_batch(spread: str) -> None:
    """Of the mixed loss, and so of both that it is the mean of."""
    before, images, devices = first_state(), draw_images(8, 32), jax.devices()
    alone, _ = step_of(MODEL)(before, teacher_of("tiny"), images)
    if spread == "pmap":
        split = images.reshape(len(devices), 1, -1, *images.shape[1:])
        spread_out, _ = parallel_step()(first_state(EMA), teacher_of("tiny"), Batch(split), 1)
    else:
        step = make_train_step(MODEL, OPTIMIZER, LOSSES["mixed"], "batch")
        mesh, whole = Mesh(np.array(devices), ("batch",)), PartitionSpec()
        specs = (whole, whole, PartitionSpec("batch"))
        mapped = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=whole))
        spread_out, _ = mapped(before, teacher_of("tiny"), images)
    gradients, expected = (descents(before.params, s.params) for s in (spread_out, alone))
    for own, of_all in zip(*map(jax.tree.leaves, (gradients, expected)), strict=True):
        assert np.abs(of_all).max() > 1e-4
        np.testing.assert_allclose(own, of_all, atol=1e-4 * np.abs(of_all).max() + 2e-6)
    assert largest_difference(spread_out.batch_stats, alone.batch_stats) < 1e-5


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_step_on_the_features_of_other_batches_is_that_on_the_images(
    dtype: type, direction: Any
) -> None:
    """Each image's features come from a batch of its own."""
    model = Model("tiny", dtype=dtype, direction=direction)
    before = create_train_state(model, OPTIMIZER, jax.random.key(0))
    teacher, images = teacher_of("tiny"), draw_images(4, 32)
    encode = jax.jit(model.teacher_features)
    alone = [encode(teacher, image[None]) for image in images]
    features = tuple(np.concatenate(of_scale) for of_scale in zip(*alone, strict=True))
    assert {x.dtype for x in features} == {jnp.dtype(dtype)}
    step = jax.jit(make_distillation_step(model, OPTIMIZER, LOSSES["mixed"]))
    seen = images if direction == "forward" else None
    after, metrics = step(before, teacher, features, seen)
    expected, whole = step_of(model)(before, teacher, images)
    rounding = float(jnp.finfo(dtype).eps)
    assert metrics["loss"] == pytest.approx(float(whole["loss"]), rel=4 * rounding)
    gradients, of_images = (descents(before.params, s.params) for s in (after, expected))
    for own, right in zip(*map(jax.tree.leaves, (gradients, of_images)), strict=True):
        np.testing.assert_allclose(own, right, atol=32 * rounding * np.abs(right).max() + 2e-6)


def test_forward_distillation_on_features_alone_is_refused() -> None:
    features = jax.eval_shape(FORWARD.teacher_features, teacher_of("tiny"), draw_images(2, 32))
    state = train_state_shapes(FORWARD, OPTIMIZER)
    step = make_distillation_step(FORWARD, OPTIMIZER)
    with pytest.raises(ValueError, match="images=None: direction='forward' needs the images"):
        jax.eval_shape(step, state, teacher_of("tiny"), features)


def test_the_average_weighs_what_each_step_ended_with_and_no_initial_values() -> None:
    state, ends = first_state(EMA), []
    for seed in range(12):
        batch = draw_images(8, 32, seed).reshape(4, 1, 2, 32, 32, 3)
        state, _ = parallel_step()(state, teacher_of("tiny"), Batch(batch), 1)
        ends.append(jax.device_get(state.variables))
    # Of the i-th of n ends: what it brought in, times what every later step left of it.
    kept = np.minimum(EMA, np.arange(12) / (np.arange(12) + 9))
    shares = np.array([(1 - kept[i]) * np.prod(kept[i + 1 :]) for i in range(12)])
    assert shares.sum() == pytest.approx(1)
    assert kept[-2:] == pytest.approx(EMA)
    expected = jax.tree.map(lambda *x: np.tensordot(shares, np.stack(x), 1), *ends)
    assert largest_difference(state.student_variables, expected) < 1e-5
    assert largest_difference(state.variables, expected) > 1e-4


@pytest.mark.parametrize(("of_state", "of_step"), [(0.0, 0.9), (0.9, 0.0)])
def test_an_average_belongs_to_state_and_step(of_state: float, of_step: float) -> None:
    step = make_train_step(MODEL, OPTIMIZER, ema=of_step)
    with pytest.raises(ValueError, match="give create_train_state and the step the same"):
        step(first_state(of_state), teacher_of("tiny"), draw_images(2, 32))


def test_only_what_the_chosen_scales_see_gets_a_gradient() -> None:
    before, model = first_state(), Model("tiny", scales=(3,))
    after, _ = step_of(model)(before, teacher_of("tiny"), draw_images(2, 32))
    found = moved(before.params, after.params)
    assert found == {name: name.startswith("layer1") for name in found}


@pytest.fixture(scope="module")
def forward_step() -> tuple[TrainState, TrainState]:
    """A step of forward distillation on the first scale: before and after."""
    before = create_train_state(FORWARD, OPTIMIZER, jax.random.key(0))
    return before, step_of(FORWARD)(before, teacher_of("tiny"), draw_images(4, 32))[0]


def test_in_forward_distillation_the_student_is_a_second_teacher_without_bottleneck(
    forward_step: tuple[TrainState, TrainState],
) -> None:
    before, after = forward_step
    assert set(before.params) == set(before.batch_stats) == {"student"}
    shapes = {name: tree["student"] for name, tree in before.variables.items()}
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, teacher_of("tiny"))
    found = moved(before.params, after.params)
    assert found == {name: name[:6] in ("conv1", "bn1", "layer1") for name in found}
    assert all(moved(before.batch_stats, after.batch_stats).values())


def test_maps_of_a_student_that_is_its_teacher_are_zero_and_of_another_are_not(
    forward_step: tuple[TrainState, TrainState],
) -> None:
    teacher, images = teacher_of("tiny"), draw_images(4, 32)
    scorer = make_scorer(FORWARD)
    same = {name: {"student": tree} for name, tree in teacher.items()}
    assert np.abs(scorer(teacher, same, images)[0]).max() < 1e-6
    other = jax.tree.map(lambda x: x + 0.1, forward_step[1].student_variables)
    maps, scores = scorer(teacher, other, images)
    assert maps.min() > 1e-4
    np.testing.assert_array_equal(scores, maps.max((1, 2)))


def test_shapes_of_a_state_are_those_of_the_state() -> None:
    optimizer = optax.adam(0.005)
    state = create_train_state(MODEL, optimizer, jax.random.key(0), EMA)
    declared = train_state_shapes(MODEL, optimizer, EMA)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), declared
    )


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_step_and_the_scorer_promote_no_dtypes_implicitly(dtype: type, direction: Any) -> None:
    model = Model("tiny", dtype=dtype, direction=direction)
    optimizer, teacher = optax.adam(0.005, 0.5, 0.999), teacher_of("tiny")
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)
    with jax.numpy_dtype_promotion("strict"):
        state = train_state_shapes(model, optimizer, EMA)
        step = make_train_step(model, optimizer, LOSSES["mixed"], ema=EMA)
        after, metrics = jax.eval_shape(step, state, teacher, images)
        maps, scores = jax.eval_shape(make_scorer(model), teacher, after.student_variables, images)
    assert {x.dtype for x in (metrics["loss"], maps, scores)} == {jnp.dtype("float32")}
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )


BAD_IMAGES = {
    "floats": np.zeros((2, 32, 32, 3), np.float32),
    "channels first": np.zeros((2, 3, 32, 32), np.uint8),
    "16 pixels": np.zeros((2, 16, 32, 3), np.uint8),
    "40 pixels": np.zeros((2, 32, 40, 3), np.uint8),
    "no images": np.zeros((0, 32, 32, 3), np.uint8),
    "no pixels": np.zeros((2, 0, 32, 3), np.uint8),
    "one image": np.zeros((32, 32, 3), np.uint8),
    "grey": np.zeros((2, 32, 32, 1), np.uint8),
}


@pytest.mark.parametrize("images", BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_images_that_networks_do_not_take_are_refused_by_shape_and_dtype(
    images: np.ndarray,
) -> None:
    state, teacher = first_state(), teacher_of("tiny")
    step = make_train_step(MODEL, OPTIMIZER)
    scorer = make_scorer(MODEL)
    for refusing in (
        lambda: step(state, teacher, images),
        lambda: jax.jit(step)(state, teacher, images),
        lambda: scorer(teacher, state.student_variables, images),
    ):
        with pytest.raises(ValueError, match=r"must be uint8 \[B, H, W, 3\]") as caught:
            refusing()
        assert f"images are {images.dtype} {list(images.shape)}" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("ema", [-0.1, 1.0, 1.5, float("nan")])
def test_an_average_that_would_not_end_is_refused(ema: float) -> None:
    for refusing in (
        lambda: first_state(ema),
        lambda: train_state_shapes(MODEL, OPTIMIZER, ema),
        lambda: make_train_step(MODEL, OPTIMIZER, ema=ema),
    ):
        with pytest.raises(ValueError, match=r"ema=.*: must be at least 0 and below 1"):
            refusing()
