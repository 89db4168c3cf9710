"""One training of a run, and what is said of one that diverges."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from rd_jax.config import Config
from rd_jax.data import Split
from rd_jax.data.order import batch_indices, holdout_indices, steps_until
from rd_jax.run.progress import Diverged
from rd_jax.store import checkpoint
from rd_jax.store.workdir import Training
from rd_jax.system.errors import UserError


class Task(NamedTuple):
    """One training: of one category and seed, on those images that are not held out."""

    config: Config
    split: Split
    training: Training
    trained_on: np.ndarray
    held_out: np.ndarray

    @property
    def name(self) -> str:
        """What the progress is shown under."""
        seeds, name = self.config.seeds, self.split.name
        return f"{name}, seed {self.config.seed}" if seeds else name

    @property
    def last_step(self) -> int:
        """The number of steps."""
        return self.steps_until(self.config.num_epochs)

    def steps_every(self, epochs: int) -> set[int]:
        """The steps before the last at which every so many epochs end; 0 epochs: none."""
        multiples = range(epochs, self.config.num_epochs, epochs) if epochs else ()
        return {self.steps_until(epoch) for epoch in multiples} - {self.last_step}

    def steps_until(self, epoch: int) -> int:
        """Steps after which every image that is not held out was used `epoch` times."""
        return steps_until(epoch, len(self.trained_on), self.config.batch_size)


def make_task(config: Config, split: Split, training: Training) -> Task:
    """Raises UserError if the hold-out leaves nothing to train on, or holds nothing."""
    chosen = holdout_indices(config.seed, config.holdout, len(split.train))
    return Task(config, split, training, *chosen)


@contextmanager
def diverging_as_user_error(task: Task) -> Iterator[None]:
    """Raises UserError, with all that helps to find out why, for a loss that is not finite."""
    try:
        yield
    except Diverged as error:
        raise UserError(_describe(error, task)) from error


def _describe(error: Diverged, task: Task) -> str:
    config, trained_on = task.config, task.trained_on
    order = batch_indices(config.seed, error.step - 1, len(trained_on), config.batch_size)
    names = ", ".join(task.split.train_names[i] for i in sorted(set(trained_on[order])))
    before = "there was none" if error.last_finite is None else f"{error.last_finite:.6g}"
    saved = checkpoint.steps(task.training.checkpoints)
    last_good = f"at step {saved[0]} in {task.training.folder}" if saved else "there is none"
    return (
        f"{task.name}: the loss is not finite at step {error.step}: lower "
        "--config.learning_rate, or try --config.dtype=float32 (last finite loss: "
        f"{before}; last good checkpoint: {last_good}; images of this step: {names})"
    )
