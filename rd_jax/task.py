"""One training of a run, and what is said of one that diverges."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rd_jax import checkpoint
from rd_jax.config import Config
from rd_jax.data import Split
from rd_jax.errors import UserError
from rd_jax.progress import Diverged
from rd_jax.train import batch_indices, holdout_indices, steps_until


class Task(NamedTuple):
    """One training: of one category and seed."""

    config: Config
    split: Split
    folder: Path

    @property
    def name(self) -> str:
        """What the progress is shown under."""
        seeds, name = self.config.seeds, self.split.name
        return f"{name}, seed {self.config.seed}" if seeds else name

    def steps_every(self, epochs: int) -> set[int]:
        """The steps before the last at which every so many epochs end; 0 epochs: none."""
        multiples = range(epochs, self.config.num_epochs, epochs) if epochs else ()
        last_step = self.steps_until(self.config.num_epochs)
        return {self.steps_until(epoch) for epoch in multiples} - {last_step}

    def steps_until(self, epoch: int) -> int:
        """Steps after which every image that is not held out was used `epoch` times."""
        trained_on, _ = holdout_indices(self.config, len(self.split.train))
        return steps_until(epoch, len(trained_on), self.config.batch_size)


@contextmanager
def diverging_as_user_error(task: Task, trained_on: np.ndarray) -> Iterator[None]:
    """Raises UserError, with all that helps to find out why, for a loss that is not finite."""
    try:
        yield
    except Diverged as error:
        raise UserError(_describe(error, task, trained_on)) from error


def _describe(error: Diverged, task: Task, trained_on: np.ndarray) -> str:
    config = task.config
    order = batch_indices(config.seed, error.step - 1, len(trained_on), config.batch_size)
    names = ", ".join(task.split.train_names[i] for i in sorted(set(trained_on[order])))
    before = "there was none" if error.last_finite is None else f"{error.last_finite:.6g}"
    saved = checkpoint.steps(task.folder / checkpoint.FOLDER)
    last_good = f"at step {saved[0]} in {task.folder}" if saved else "there is none"
    return (
        f"{task.name}: the loss is not finite at step {error.step}: lower "
        "--config.learning_rate, or try --config.dtype=float32 (last finite loss: "
        f"{before}; last good checkpoint: {last_good}; images of this step: {names})"
    )
