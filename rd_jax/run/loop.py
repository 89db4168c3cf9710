"""The loop over steps: images to the devices, states back."""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rd_jax.data import Joined
from rd_jax.data.order import batch_indices
from rd_jax.method.train import AXIS, Metrics, TrainState

_MOST_BYTES = 2**28  # of the images of a dispatch
TrainSteps = Callable[..., tuple[TrainState, Metrics]]


def placement() -> tuple[NamedSharding, NamedSharding]:
    """Return the shardings "on all local devices" and "split over them"."""
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))


def steps_per_dispatch(batch_size: int, size: tuple[int, int]) -> int:
    """Return how many steps pay on this platform: see `make_parallel_train_steps`.

    The images [batch_size, *size, 3] of so many steps take at most `_MOST_BYTES`.
    """
    if jax.default_backend() == "cpu":
        return 1
    return max(1, min(16, _MOST_BYTES // (3 * batch_size * math.prod(size))))


@dataclass(frozen=True)
class Batches:
    """The images of each step, as a function of the seed and the step."""

    images: np.ndarray | Joined  # [N, H, W, 3] uint8
    chosen: np.ndarray  # which of the N are trained on
    batch_size: int  # over all devices of all processes
    seed: int

    def of_steps(self, step: int, num_steps: int, max_steps: int) -> np.ndarray:
        """Return uint8 [local devices, max_steps, B / devices, H, W, 3] from `step` on.

        Only the first `num_steps` entries are valid. Each process makes its own share.
        """
        share = self.batch_size // jax.process_count()
        own = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
        batches = np.zeros((max_steps, share, *self.images.shape[1:]), np.uint8)
        for i in range(num_steps):
            order = batch_indices(self.seed, step + i, len(self.chosen), self.batch_size)
            batches[i] = self.images[self.chosen[order[own]]]
        per_device = (jax.local_device_count(), -1, *self.images.shape[1:])
        return batches.reshape(max_steps, *per_device).swapaxes(0, 1)


def dispatches(
    train_steps: TrainSteps,
    max_steps: int,
    teacher_variables: object,
    batches: Batches,
    state: TrainState,
    pauses: Collection[int],
) -> Iterator[tuple[TrainState, int, Metrics]]:
    """Train to the last of the `pauses`; after each dispatch yield state, steps done, metrics.

    `train_steps` is `make_parallel_train_steps` with `max_steps` for all devices. A dispatch never
    runs past a step in `pauses`. The yielded state is valid until the iteration goes on. While one
    dispatch computes, the next one's images are gathered and copied, and no more: metrics are
    arrays that may still be computed.
    """
    replicated, split = placement()
    teacher_variables, state = jax.device_put((teacher_variables, state), replicated)
    step, metrics = int(state.step), None
    for pause in sorted(pause for pause in pauses if pause > step):
        while step < pause:
            num_steps = min(max_steps, pause - step)
            images = jax.device_put(batches.of_steps(step, num_steps, max_steps), split)
            before = metrics
            state, metrics = train_steps(state, teacher_variables, images, np.int32(num_steps))
            jax.block_until_ready(before)
            step += num_steps
            yield state, step, metrics
