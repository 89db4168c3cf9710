"""Training: the state, one step as a pure function, several steps as one dispatch."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rd_jax.method.checks import check_fraction
from rd_jax.method.loss import LossFunction, per_position_cosine_loss
from rd_jax.method.models import Features, Model
from rd_jax.method.models.init import init_variables

Metrics = dict[str, jax.Array]  # of steps: their loss
AXIS = "batch"


class TrainState(NamedTuple):
    """Everything that training changes; all float32 but the counters."""

    params: Any  # {"bottleneck": ..., "student": ...}, without the first for bottleneck "pre"
    batch_stats: Any  # likewise
    opt_state: Any
    step: jax.Array  # [] int32, steps done
    average: Any = None  # {"params", "batch_stats"}, of all steps; None where none is kept

    @property
    def variables(self) -> dict[str, Any]:
        """Return the variables of bottleneck and student that are trained on."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def student_variables(self) -> dict[str, Any]:
        """Return what the scorer needs: `variables` or, where it is kept, their average."""
        return self.average or self.variables

    @property
    def rest(self) -> Any:
        """Return what is needed besides to go on: see `gone_on_with`."""
        return self.opt_state if self.average is None else (self.opt_state, self.variables)

    def gone_on_with(self, student_variables: Any, rest: Any, step: Any) -> "TrainState":
        """Return a state like this one, of the `student_variables` and the `rest` of another."""
        if self.average is None:
            return TrainState(**student_variables, opt_state=rest, step=step)
        opt_state, variables = rest
        return TrainState(**variables, opt_state=opt_state, step=step, average=student_variables)


def create_train_state(
    model: Model, optimizer: optax.GradientTransformation, rng: jax.Array, ema: float = 0.0
) -> TrainState:
    """Return the state before the first step, a pure function of the key `rng`; compile nothing.

    `ema` is that of `make_train_step`.
    """
    return _first_state(model, optimizer, ema, init_variables(model.learnt_shapes(), rng))


def train_state_shapes(
    model: Model, optimizer: optax.GradientTransformation, ema: float = 0.0
) -> TrainState:
    """Return the state's arrays as ShapeDtypeStructs."""
    return jax.eval_shape(partial(_first_state, model, optimizer, ema), model.learnt_shapes())


def _first_state(
    model: Model, optimizer: optax.GradientTransformation, ema: float, variables: dict[str, Any]
) -> TrainState:
    check_fraction("ema", ema)
    if model.bottleneck == "pre":
        variables = {name: {"student": tree["student"]} for name, tree in variables.items()}
    # One program, not one for each shape.
    opt_state, average = jax.jit(optimizer.init)(variables["params"]), variables if ema else None
    return TrainState(**variables, opt_state=opt_state, step=jnp.int32(0), average=average)


def make_distillation_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    loss: LossFunction = per_position_cosine_loss,
    axis_name: str | None = None,
    ema: float = 0.0,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Return step(state, teacher_variables, teacher_features, images=None) -> (state, metrics).

    It is the half of `make_train_step` after the teacher, whose features of an image, of all
    scales, never change: one step of the optimiser (paper, equation 2). Forward distillation alone
    needs the images.
    """
    check_fraction("ema", ema)

    def distillation_step(
        state: TrainState, teacher_variables: Any, teacher_features: Features, images: Any = None
    ) -> tuple[TrainState, Metrics]:
        if (state.average is not None) != (ema > 0):
            raise ValueError(f"ema={ema}: give create_train_state and the step the same")

        def loss_of(params: Any) -> tuple[jax.Array, Any]:
            student_features, batch_stats = model.train_features(
                teacher_variables,
                {"params": params, "batch_stats": state.batch_stats},
                images,
                teacher_features,
                axis_name,
            )
            value = loss(model.select(teacher_features), model.select(student_features))
            return value, batch_stats

        params = state.params
        if axis_name is not None:
            # Each device's own, else shard_map sums the gradients of what devices have in common.
            params = lax.pcast(params, axis_name, to="varying")
        (value, batch_stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        if axis_name is not None:
            value, gradients = lax.pmean((value, gradients), axis_name)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integers
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        after = TrainState(params, batch_stats, opt_state, state.step + 1)
        if ema:
            kept = jnp.minimum(ema, state.step / (state.step + 9))
            average = optax.incremental_update(after.variables, state.average, 1 - kept)
            after = after._replace(average=average)
        return after, {"loss": value}

    return distillation_step


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    loss: LossFunction = per_position_cosine_loss,
    axis_name: str | None = None,
    ema: float = 0.0,
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, Metrics]]:
    """Return a pure function step(state, teacher_variables, images) -> (state, {"loss": []}).

    It is the teacher, then `make_distillation_step`. `images` is uint8 [B, H, W, 3]; `loss` takes
    the teacher's and the student's `Features` of the model's scales and gives a mean over images.
    Wrap the function in `jax.jit`; or give `axis_name` and wrap it in a `jax.pmap` or
    `jax.shard_map` over that axis, which splits the images: gradients and BatchNorm statistics are
    then those of the batch over all devices.

    With `ema` > 0 the state's `average` becomes a share `ema` of itself and the rest of the step's
    parameters and BatchNorm statistics, but after t steps at most a share t / (t + 9): it is that
    of about the last tenth of a short training, and never of initial values.
    """
    distillation_step = make_distillation_step(model, optimizer, loss, axis_name, ema)

    def train_step(
        state: TrainState, teacher_variables: Any, images: jax.Array
    ) -> tuple[TrainState, Metrics]:
        teacher_features = model.teacher_features(teacher_variables, images)
        return distillation_step(state, teacher_variables, teacher_features, images)

    return train_step


class Batch(NamedTuple):
    """What a step is taken on."""

    images: jax.Array | None  # uint8 [B, H, W, 3]; None where the features are enough
    teacher_features: Features | None = None  # None where the step computes them


def make_parallel_train_steps(
    model: Model,
    optimizer: optax.GradientTransformation,
    loss: LossFunction,
    max_steps: int,
    devices: Sequence[jax.Device] | None = None,
    ema: float = 0.0,
) -> jax.stages.Wrapped:
    """Return a function that does up to `max_steps` train steps as one dispatch.

    It takes the state, which it consumes, the teacher's variables, a `Batch` of arrays
    [devices, max_steps, B / devices, ...], each batch split over `devices`, and the number of
    steps to do. It returns the state and metrics [max_steps], of which only the first steps' are
    valid. State and metrics have no device axis.
    """
    distillation_step = make_distillation_step(model, optimizer, loss, AXIS, ema)

    def steps(
        state: TrainState, teacher_variables: Any, batches: Batch, num_steps: jax.Array
    ) -> tuple[TrainState, Metrics]:
        # Once a dispatch: XLA leaves a conversion that every step would do alike in the loop.
        teacher_variables = jax.tree.map(
            lambda x: x.astype(model.dtype) if x.ndim == 4 else x, teacher_variables
        )

        def body(i: Any, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = carry
            images, teacher_features = jax.tree.map(lambda x: x[i], batches)
            if teacher_features is None:
                teacher_features = model.teacher_features(teacher_variables, images)
            state, new = distillation_step(state, teacher_variables, teacher_features, images)
            return state, jax.tree.map(lambda all_, value: all_.at[i].set(value), metrics, new)

        start = (state, {"loss": jnp.zeros(max_steps)})
        if max_steps == 1:  # XLA runs convolutions inside a loop many times slower on CPU.
            return body(0, start)
        return lax.fori_loop(0, num_steps, body, start)

    axes: dict[str, Any] = {"in_axes": (None, None, 0, None), "out_axes": None}
    return jax.pmap(steps, AXIS, **axes, devices=devices, donate_argnums=0)
