"""What a run compiles, while its images are decoded."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rd_jax.config import Config
from rd_jax.evaluate import Scorer, compile_scorer
from rd_jax.train import (
    Metrics,
    TrainState,
    make_parallel_train_steps,
    steps_per_dispatch,
    train_state_shapes,
)
from rd_jax.weights import LoadedTeacher


class Programs(NamedTuple):
    """What is compiled once for all trainings of a run."""

    train_steps: Future[Callable[..., tuple[TrainState, Metrics]]]
    scorer: Future[Scorer]


def compile_programs(
    compiler: ThreadPoolExecutor, config: Config, teacher: LoadedTeacher
) -> Programs:
    """Starts to compile; XLA does so without Python, which decodes meanwhile."""
    shapes = train_state_shapes(config)

    def train_steps() -> Callable[..., tuple[TrainState, Metrics]]:
        max_steps, size = steps_per_dispatch(), config.image_size
        num_devices = jax.local_device_count()
        images = (num_devices, max_steps, config.batch_size // jax.device_count(), size, size, 3)
        steps = make_parallel_train_steps(config, max_steps)
        if jax.process_count() > 1:  # where pmap compiles at its first call alone
            return steps
        return steps.lower(
            shapes,
            teacher.variables,
            jax.ShapeDtypeStruct(images, jnp.uint8),
            jax.ShapeDtypeStruct((), jnp.int32),
        ).compile()

    def scorer() -> Scorer:
        return compile_scorer(
            config, teacher.variables, shapes.student_variables, config.batch_size
        )

    return Programs(compiler.submit(train_steps), compiler.submit(scorer))
