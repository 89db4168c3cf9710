"""What a run compiles, while its images are decoded."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rd_jax.config import Config
from rd_jax.method.loss import LOSSES
from rd_jax.method.train import make_parallel_train_steps, train_state_shapes
from rd_jax.run.build import model_of, optimizer_of, scorer_of
from rd_jax.run.loop import TrainSteps, steps_per_dispatch
from rd_jax.run.scoring import Scorer, compile_scorer
from rd_jax.weights.teacher import LoadedTeacher


class Programs(NamedTuple):
    """What is compiled once for all trainings of a run."""

    train_steps: Future[TrainSteps]
    scorer: Future[Scorer]


def compile_programs(
    compiler: ThreadPoolExecutor, config: Config, teacher: LoadedTeacher
) -> Programs:
    """Starts to compile; XLA does so without Python, which decodes meanwhile."""
    model, optimizer, size = model_of(config), optimizer_of(config), config.image_size
    shapes = train_state_shapes(model, optimizer)

    def train_steps() -> TrainSteps:
        max_steps, num_devices = steps_per_dispatch(), jax.local_device_count()
        images = (num_devices, max_steps, config.batch_size // jax.device_count(), size, size, 3)
        steps = make_parallel_train_steps(model, optimizer, LOSSES[config.loss], max_steps)
        if jax.process_count() > 1:  # where pmap compiles at its first call alone
            return steps
        return steps.lower(
            shapes,
            teacher.variables,
            jax.ShapeDtypeStruct(images, jnp.uint8),
            jax.ShapeDtypeStruct((), jnp.int32),
        ).compile()

    def scorer() -> Scorer:
        variables = teacher.variables, shapes.student_variables
        return compile_scorer(scorer_of(config), *variables, config.batch_size, size)

    return Programs(compiler.submit(train_steps), compiler.submit(scorer))
