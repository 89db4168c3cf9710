"""Compile the programs of a training, and choose which data stay on the devices."""

import math
from collections.abc import Collection, Iterator
from functools import cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from rd_jax.data.order import first_epoch
from rd_jax.method.loss import LossFunction
from rd_jax.method.models import Model
from rd_jax.method.models.batch_norm import fold_batch_norm
from rd_jax.method.models.init import teacher_shapes
from rd_jax.method.train import (
    Batch,
    Metrics,
    TrainState,
    make_parallel_train_steps,
    train_state_shapes,
)
from rd_jax.run.batches import Batches, Images, kept, placement, streamed
from rd_jax.run.loop import TrainSteps, dispatches, steps_per_dispatch
from rd_jax.run.plan import Plan, size_of, trained_model_of
from rd_jax.system.memory import free_bytes

Kept = Literal["teacher features", "images", "nothing"]
# Of the free memory, for kept data. The rest is for the steps and, on a CPU, other programs.
_SHARE = 1 / 4


def kept_of(plan: Plan) -> Kept:
    """Return which data of the training images stay on the devices.

    With `keep_features` "auto", the teacher's features stay if they are used more than once and fit
    into a quarter of the free memory. Several processes keep them only if they are told to, since
    all have to do the same. Else, on GPU and TPU, the images stay if they fit.
    """
    config, free = plan.config, _SHARE * free_bytes()
    rows = sum(category.num_train for category in plan.categories)  # before they are decoded
    pays = config.num_epochs > 1 and jax.process_count() == 1
    fits = rows * _bytes(_row(plan, "teacher features")) <= free
    if config.keep_features is True or (config.keep_features == "auto" and pays and fits):
        return "teacher features"
    fits = rows * _bytes(_row(plan, "images")) <= free
    return "images" if fits and jax.default_backend() != "cpu" else "nothing"


def steps_of(
    plan: Plan,
    keeps: Kept,
    images: Images,
    teacher_variables: Any,
    state: TrainState,
    pauses: Collection[int],
) -> Iterator[tuple[TrainState, int, Metrics]]:
    """Return the `dispatches` of a training."""
    config, chosen = plan.config, plan.trained_on
    replicated, _ = placement()
    teacher_variables = jax.device_put(teacher_variables, replicated)
    if keeps == "nothing":
        take = streamed(images, chosen)
    else:
        encode = partial(encoder_of(plan, keeps), teacher_variables)
        chunks = first_epoch(config.seed, len(chosen), config.batch_size)
        take = kept(encode, images, chosen, chunks)
    batches = Batches(take, len(chosen), config.batch_size, config.seed)
    programs = train_steps_of(plan, keeps), _steps_at_once(plan, keeps)
    return dispatches(*programs, teacher_variables, batches, state, pauses)


def train_steps_of(plan: Plan, keeps: Kept) -> TrainSteps:
    """Return `make_parallel_train_steps`, compiled for a plan's batches and these devices."""
    config = plan.config
    per_device = config.batch_size // jax.device_count()
    axes = jax.local_device_count(), _steps_at_once(plan, keeps), per_device
    batches = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*axes, *x.shape[1:]), x.dtype), _row(plan, keeps)
    )
    return train_steps(trained_model_of(config), plan.optimizer, plan.loss, config.ema, batches)


def encoder_of(plan: Plan, keeps: Kept) -> jax.stages.Compiled:
    """Return the compiled function that makes kept rows of teacher's variables and images."""
    config = plan.config
    return encoder(trained_model_of(config), keeps, (config.batch_size, *size_of(config), 3))


def _steps_at_once(plan: Plan, keeps: Kept) -> int:
    return steps_per_dispatch(plan.config.batch_size * _bytes(_row(plan, keeps)))


@cache  # trainings that differ only in images and seeds compile once
def train_steps(
    model: Model,
    optimizer: optax.GradientTransformation,
    loss: LossFunction,
    ema: float,
    batches: Batch,
) -> TrainSteps:
    """Return `make_parallel_train_steps` for batches of these shapes, compiled."""
    max_steps = jax.tree.leaves(batches)[0].shape[1]
    steps = make_parallel_train_steps(model, optimizer, loss, max_steps, ema=ema)
    if jax.process_count() > 1:  # pmap compiles at its first call only
        return steps
    return steps.lower(
        train_state_shapes(model, optimizer, ema),
        _teacher_shapes(model),
        batches,
        jax.ShapeDtypeStruct((), jnp.int32),
    ).compile()


@cache
def encoder(model: Model, keeps: Kept, shape: tuple[int, ...]) -> jax.stages.Compiled:
    """Return (teacher_variables, images of this shape) -> `Batch` to keep, compiled."""
    replicated, split = placement()
    encode = jax.jit(partial(_encoded, model, keeps), out_shardings=replicated)
    teacher = jax.tree.map(lambda x: x.update(sharding=replicated), _teacher_shapes(model))
    return encode.lower(teacher, jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=split)).compile()


def _encoded(model: Model, keeps: Kept, teacher_variables: Any, images: jax.Array) -> Batch:
    """Return the input of steps for images [B, H, W, 3]."""
    if keeps != "teacher features":
        return Batch(images)
    teacher_features = model.teacher_features(teacher_variables, images)
    return Batch(images if model.direction == "forward" else None, teacher_features)


def _row(plan: Plan, keeps: Kept) -> Batch:
    """Return the shapes of the input of steps for one image."""
    return _row_of(trained_model_of(plan.config), keeps, size_of(plan.config))


@cache  # a start asks several times, and each time would trace the teacher
def _row_of(model: Model, keeps: Kept, size: tuple[int, int]) -> Batch:
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
    return jax.eval_shape(partial(_encoded, model, keeps), _teacher_shapes(model), image)


@cache
def _teacher_shapes(model: Model) -> Any:
    return jax.eval_shape(
        fold_batch_norm, teacher_shapes(model.backbone, model.bottleneck == "pre")
    )


def _bytes(rows: Batch) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(rows))
