"""Training: the state, one step as a pure function, the loop over steps."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rd_jax import hosts
from rd_jax.config import Config, compute_dtype, input_scaling
from rd_jax.errors import UserError
from rd_jax.loss import flattened_cosine_loss, per_position_cosine_loss
from rd_jax.models import Reconstruction, Teacher
from rd_jax.models.bottleneck import join_variables
from rd_jax.models.init import example_shapes, init_variables, variable_shapes
from rd_jax.models.resnet import Features, select_scales

Metrics = dict[str, jax.Array]
LossFunction = Callable[[Features, Features], jax.Array]
LOSSES: dict[str, LossFunction] = {
    "per_position": per_position_cosine_loss,
    "flattened": flattened_cosine_loss,
}
AXIS = "batch"
_HOLDOUT = 2**32  # sets the hold-out's random numbers apart from those of every epoch


class TrainState(NamedTuple):
    """Everything that training changes; all float32 but the counters."""

    params: Any  # {"bottleneck": ..., "student": ...}, without the first for bottleneck "pre"
    batch_stats: Any  # likewise
    opt_state: Any
    step: jax.Array  # [] int32, steps done

    @property
    def student_variables(self) -> dict[str, Any]:
        """What the scorer needs."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam with the config's rate and betas; the paper's have no schedule."""
    return optax.adam(config.learning_rate, config.adam_b1, config.adam_b2)


def create_train_state(config: Config, rng: jax.Array) -> TrainState:
    """The state before the first step, a pure function of the key `rng`; nothing is compiled."""
    return _first_state(config, init_variables(_all_shapes(config), rng))


def train_state_shapes(config: Config) -> TrainState:
    """The state's arrays as ShapeDtypeStructs."""
    return jax.eval_shape(partial(_first_state, config), _all_shapes(config))


def _all_shapes(config: Config) -> Any:
    _, features = example_shapes(config.backbone)
    return variable_shapes(Reconstruction(config.backbone, config.bottleneck), features)


def _first_state(config: Config, variables: dict[str, Any]) -> TrainState:
    if config.bottleneck == "pre":
        variables = {name: {"student": tree["student"]} for name, tree in variables.items()}
    params = variables["params"]
    opt_state = make_optimizer(config).init(params)
    return TrainState(params, variables["batch_stats"], opt_state, jnp.int32(0))


def make_train_step(
    config: Config, axis_name: str | None = None, loss_function: LossFunction | None = None
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, Metrics]]:
    """A pure function step(state, teacher_variables, images) -> (state, {"loss": []}).

    `images` is uint8 [B, H, W, 3]. One step of the optimiser on the distillation loss (paper,
    section 3.2). Wrap it in `jax.jit`, or give `axis_name` and wrap it in a `jax.pmap` of that
    axis: gradients and BatchNorm statistics are then those of the batch over all devices.
    `loss_function` of teacher and student `Features`, instead of the config's, gives a scalar.
    """
    dtype = compute_dtype(config)
    teacher = Teacher(config.backbone, dtype)
    reconstruction = Reconstruction(config.backbone, config.bottleneck, dtype, axis_name)
    loss_function = loss_function or LOSSES[config.loss]
    optimizer = make_optimizer(config)
    scales, kind, scaled = tuple(config.scales), config.bottleneck, input_scaling(config)

    def train_step(
        state: TrainState, teacher_variables: Any, images: jax.Array
    ) -> tuple[TrainState, Metrics]:
        teacher_features = teacher.apply(teacher_variables, scaled(images))

        def loss_of(params: Any) -> tuple[jax.Array, Any]:
            student_variables = {"params": params, "batch_stats": state.batch_stats}
            student_features, updated = reconstruction.apply(
                join_variables(kind, teacher_variables, student_variables),
                teacher_features,
                train=True,
                mutable=["batch_stats"],
            )
            loss = loss_function(
                select_scales(teacher_features, scales),
                select_scales(student_features, scales),
            )
            return loss, {name: updated["batch_stats"][name] for name in state.batch_stats}

        (loss, batch_stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        if axis_name is not None:
            loss, gradients = lax.pmean((loss, gradients), axis_name)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, batch_stats, opt_state, state.step + 1), {"loss": loss}

    return train_step


def make_parallel_train_steps(
    config: Config, max_steps: int, devices: Sequence[jax.Device] | None = None
) -> jax.stages.Wrapped:
    """Up to `max_steps` train steps as one dispatch, each batch split over `devices`.

    Takes the state, which it consumes, the teacher's variables, uint8 images
    [devices, max_steps, B / devices, H, W, 3] and the number of steps to do; returns the state
    and metrics [max_steps], of which as many are meant. State and metrics have no device axis.
    """
    train_step, dtype = make_train_step(config, AXIS), compute_dtype(config)

    def steps(
        state: TrainState, teacher_variables: Any, images: jax.Array, num_steps: jax.Array
    ) -> tuple[TrainState, Metrics]:
        # Once a dispatch: XLA leaves a conversion that every step would do alike in the loop.
        teacher_variables = jax.tree.map(
            lambda x: x.astype(dtype) if x.ndim == 4 else x, teacher_variables
        )

        def body(i: Any, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = carry
            state, new = train_step(state, teacher_variables, images[i])
            return state, jax.tree.map(lambda all_, value: all_.at[i].set(value), metrics, new)

        start = (state, {"loss": jnp.zeros(max_steps)})
        if max_steps == 1:  # XLA runs convolutions inside a loop many times slower on CPU.
            return body(0, start)
        return lax.fori_loop(0, num_steps, body, start)

    return jax.pmap(
        steps,
        AXIS,
        in_axes=(None, None, 0, None),
        out_axes=None,
        devices=devices,
        donate_argnums=0,
    )


def steps_per_dispatch() -> int:
    """How many steps pay on this platform: see `make_parallel_train_steps`."""
    return 1 if jax.default_backend() == "cpu" else 16


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_images: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_images)


def batch_indices(seed: int, step: int, num_images: int, batch_size: int) -> np.ndarray:
    """The images [batch_size] of a step: a pure function of its arguments.

    Random permutations of all images follow each other without a gap, and a batch may span two:
    at any time no image has been used more than once more often than another.
    """
    first = step * batch_size
    positions = np.arange(first, first + batch_size)
    epochs, offsets = np.divmod(positions, num_images)
    return np.array(
        [_permutation(seed, e, num_images)[o] for e, o in zip(epochs, offsets, strict=True)]
    )


def steps_until(epoch: int, num_images: int, batch_size: int) -> int:
    """Steps after which every image has been used at least `epoch` times."""
    return -(-epoch * num_images // batch_size)


def holdout_indices(config: Config, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images are trained on and which are held out: sorted, a function of the seed.

    Raises UserError if either would be empty although there is a hold-out.
    """
    num_held_out = round(config.holdout * num_images)
    if config.holdout and not 0 < num_held_out < num_images:
        raise UserError(
            f"config.holdout={config.holdout}: of {num_images} training images that is "
            f"{num_held_out}; choose another fraction"
        )
    shuffled = np.random.default_rng((config.seed, _HOLDOUT)).permutation(num_images)
    return np.sort(shuffled[num_held_out:]), np.sort(shuffled[:num_held_out])


def training(
    config: Config,
    parallel_train_steps: Callable[..., tuple[TrainState, Metrics]],
    max_steps: int,
    teacher_variables: Any,
    images: np.ndarray,
    state: TrainState,
    pause_at: Sequence[int] = (),
    chosen: np.ndarray | None = None,
) -> Iterator[tuple[TrainState, int, Metrics]]:
    """Trains to the last step; after each dispatch yields state, steps done and metrics.

    `images` is uint8 [N, H, W, 3], of which those in `chosen` (default: all) are trained on;
    `parallel_train_steps` was made with `max_steps` for all devices. Of several processes, each
    sends its own part of every batch to its own devices. A dispatch never runs
    past a step in `pause_at`. The yielded state is valid until the iteration goes on. While one
    dispatch computes, the next one's images are gathered and copied, and no more: metrics are
    arrays that may still be computed.
    """
    chosen = np.arange(len(images)) if chosen is None else chosen
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    replicated, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (AXIS,)))
    teacher_variables, state = jax.device_put((teacher_variables, state), replicated)
    last_step = steps_until(config.num_epochs, len(chosen), config.batch_size)
    pauses = sorted({*pause_at, last_step})
    own = hosts.share(config.batch_size)
    step, metrics = int(state.step), None
    while step < last_step:
        num_steps = min(max_steps, next(p for p in pauses if p > step) - step)
        batches = np.zeros((max_steps, own.stop - own.start, *images.shape[1:]), np.uint8)
        for i in range(num_steps):
            order = batch_indices(config.seed, step + i, len(chosen), config.batch_size)
            batches[i] = images[chosen[order[own]]]
        batches = batches.reshape(max_steps, mesh.size, -1, *images.shape[1:]).swapaxes(0, 1)
        before = metrics
        state, metrics = parallel_train_steps(
            state, teacher_variables, jax.device_put(batches, split), np.int32(num_steps)
        )
        jax.block_until_ready(before)
        step += num_steps
        yield state, step, metrics
