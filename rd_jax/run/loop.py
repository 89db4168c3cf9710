"""Loop over steps: send batches to the devices, get states back."""

from collections.abc import Callable, Collection, Iterator

import jax
import numpy as np

from rd_jax.method.train import Metrics, TrainState
from rd_jax.run.batches import Batches, placement

_MOST_BYTES = 2**29  # of the batches of a dispatch
TrainSteps = Callable[..., tuple[TrainState, Metrics]]


def steps_per_dispatch(bytes_of_batch: int) -> int:
    """Return how many steps a dispatch does on this platform: see `make_parallel_train_steps`.

    Their batches take at most `_MOST_BYTES`.
    """
    if jax.default_backend() == "cpu":
        return 1
    return max(1, min(16, _MOST_BYTES // bytes_of_batch))


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
    runs past a step in `pauses`. The yielded state is valid until the iteration goes on. Metrics
    may still be computing. While one dispatch computes, the batches of the next one are taken, and
    no more.
    """
    replicated, _ = placement()
    teacher_variables, state = jax.device_put((teacher_variables, state), replicated)
    step, metrics = int(state.step), None
    for pause in sorted(pause for pause in pauses if pause > step):
        while step < pause:
            num_steps = min(max_steps, pause - step)
            batch = batches.of_steps(step, num_steps, max_steps)
            before = metrics
            state, metrics = train_steps(state, teacher_variables, batch, np.int32(num_steps))
            jax.block_until_ready(before)
            step += num_steps
            yield state, step, metrics
