"""The loop over steps: images to the devices, states back."""

import math
from collections.abc import Callable, Collection, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rd_jax.data import Joined
from rd_jax.data.order import batch_indices
from rd_jax.method.train import AXIS, Metrics, TrainState
from rd_jax.system import hosts

_MOST_BYTES = 2**28  # of the images of a dispatch
TrainSteps = Callable[..., tuple[TrainState, Metrics]]


def placement() -> tuple[NamedSharding, NamedSharding]:
    """On all local devices, and split over them."""
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))


def steps_per_dispatch(batch_size: int, size: tuple[int, int]) -> int:
    """How many steps pay on this platform: see `make_parallel_train_steps`.

    Not more than whose images [batch_size, *size, 3] take `_MOST_BYTES`.
    """
    if jax.default_backend() == "cpu":
        return 1
    return max(1, min(16, _MOST_BYTES // (3 * batch_size * math.prod(size))))


def training(
    train_steps: TrainSteps,
    max_steps: int,
    teacher_variables: object,
    images: np.ndarray | Joined,
    state: TrainState,
    *,
    last_step: int,
    batch_size: int,
    seed: int,
    pause_at: Collection[int] = (),
    chosen: np.ndarray | None = None,
) -> Iterator[tuple[TrainState, int, Metrics]]:
    """Trains to the last step; after each dispatch yields state, steps done and metrics.

    `images` is uint8 [N, H, W, 3], of which those in `chosen` (default: all) are trained on;
    `train_steps` is `make_parallel_train_steps` with `max_steps` for all devices. Of several
    processes, each sends its own part of every batch to its own devices. A dispatch never runs
    past a step in `pause_at`. The yielded state is valid until the iteration goes on. While one
    dispatch computes, the next one's images are gathered and copied, and no more: metrics are
    arrays that may still be computed.
    """
    chosen = np.arange(len(images)) if chosen is None else chosen
    replicated, split = placement()
    teacher_variables, state = jax.device_put((teacher_variables, state), replicated)
    pauses = sorted({*pause_at, last_step})
    own = hosts.share(batch_size)
    step, metrics = int(state.step), None
    while step < last_step:
        num_steps = min(max_steps, next(p for p in pauses if p > step) - step)
        batches = np.zeros((max_steps, own.stop - own.start, *images.shape[1:]), np.uint8)
        for i in range(num_steps):
            order = batch_indices(seed, step + i, len(chosen), batch_size)
            batches[i] = images[chosen[order[own]]]
        per_device = (jax.local_device_count(), -1, *images.shape[1:])
        batches = batches.reshape(max_steps, *per_device).swapaxes(0, 1)
        before = metrics
        state, metrics = train_steps(
            state, teacher_variables, jax.device_put(batches, split), np.int32(num_steps)
        )
        jax.block_until_ready(before)
        step += num_steps
        yield state, step, metrics
