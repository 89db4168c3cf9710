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

Metrics = dict[str, jax.Array]  # {"loss": ...} of each step
AXIS = "batch"


class TrainState(NamedTuple):
    """Everything that training changes. All is float32, except for counters."""

    params: Any  # {"bottleneck": ..., "student": ...}; bottleneck "pre" has only the second
    batch_stats: Any  # the same keys
    opt_state: Any
    step: jax.Array  # [] int32, steps done
    average: Any = None  # {"params", "batch_stats"}, averaged over steps; None if not kept

    @property
    def variables(self) -> dict[str, Any]:
        """Return the variables of bottleneck and student after the last step."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def student_variables(self) -> dict[str, Any]:
        """Return the variables for the scorer: the average if it is kept, else `variables`."""
        return self.average or self.variables

    @property
    def rest(self) -> Any:
        """Return what resuming needs beside `student_variables`: see `gone_on_with`."""
        return self.opt_state if self.average is None else (self.opt_state, self.variables)

    def gone_on_with(self, student_variables: Any, rest: Any, step: Any) -> "TrainState":
        """Return a state of this structure with `student_variables` and `rest` of a saved one."""
        if self.average is None:
            return TrainState(**student_variables, opt_state=rest, step=step)
        opt_state, variables = rest
        return TrainState(**variables, opt_state=opt_state, step=step, average=student_variables)


def create_train_state(
    model: Model, optimizer: optax.GradientTransformation, rng: jax.Array, ema: float = 0.0
) -> TrainState:
    """Return the state before the first step, a pure function of the key `rng`.

    Give the same `ema` as to `make_train_step`. No network is compiled.
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
    # Compile one program, not one for each shape.
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

    It is one step of the optimiser (paper, equation 2), given the teacher's features of all scales.
    A teacher's features of an image never change, so whoever calls it may keep them. Only forward
    distillation needs the images.
    """
    check_fraction("ema", ema)

    def distillation_step(
        state: TrainState, teacher_variables: Any, teacher_features: Features, images: Any = None
    ) -> tuple[TrainState, Metrics]:
        if (state.average is not None) != (ema > 0):
            raise ValueError(f"ema={ema}: give create_train_state and the step the same ema")

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
            # Give each device its own: shard_map would sum the gradients of shared parameters.
            params = lax.pcast(params, axis_name, to="varying")
        (value, batch_stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        if axis_name is not None:
            value, gradients = lax.pmean((value, gradients), axis_name)
        with jax.numpy_dtype_promotion("standard"):  # optax takes floats to integer powers
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

    A step runs the teacher, then `make_distillation_step`. `images` is uint8 [B, H, W, 3]. `loss`
    takes the teacher's and the student's `Features` of the model's scales and returns a mean over
    images. Wrap the function in `jax.jit`. For several devices, give `axis_name` and wrap it in a
    `jax.pmap` or `jax.shard_map` over that axis, which splits the images. Gradients and BatchNorm
    statistics are then those of the whole batch.

    With `ema` > 0, step t keeps a share of the state's `average` and adds the rest from the step's
    parameters and BatchNorm statistics. The share is `ema`, but at most t / (t + 9). In a short
    training the average covers about the last tenth, and it never holds initial values.
    """
    distillation_step = make_distillation_step(model, optimizer, loss, axis_name, ema)

    def train_step(
        state: TrainState, teacher_variables: Any, images: jax.Array
    ) -> tuple[TrainState, Metrics]:
        teacher_features = model.teacher_features(teacher_variables, images)
        return distillation_step(state, teacher_variables, teacher_features, images)

    return train_step


class Batch(NamedTuple):
    """The input of a step."""

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

    It takes the state (which it consumes), the teacher's variables, a `Batch` of arrays
    [devices, max_steps, B / devices, ...] and `num_steps`. Each batch is split over `devices`. It
    returns the state and metrics [max_steps]; only the first `num_steps` entries are valid. State
    and metrics have no device axis.
    """
    axis_name = AXIS if len(devices or jax.devices()) > 1 else None  # a mean of one is a copy
    distillation_step = make_distillation_step(model, optimizer, loss, axis_name, ema)

    def steps(
        state: TrainState, teacher_variables: Any, batches: Batch, num_steps: jax.Array
    ) -> tuple[TrainState, Metrics]:
        # Convert once a dispatch: XLA would repeat the conversion in every step of the loop.
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
