"""Show and record the progress of a training."""

import logging
import math
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from rd_jax.method.train import Metrics, TrainState
from rd_jax.run.plan import Plan
from rd_jax.store.rows import Row, append_row
from rd_jax.system import hosts

logger = logging.getLogger(__name__)

Timing = Mapping[str, float | None]  # train_seconds, images_per_second
NO_TIME: Timing = {"train_seconds": 0.0, "images_per_second": None}


class Clock:
    """Measure seconds and speed of one training, over all its resumptions."""

    def __init__(self, timing: Timing):
        self._away = 0.0
        self._start = self._now() - (timing["train_seconds"] or 0.0)
        self._images_per_second = timing["images_per_second"]
        self._warm: tuple[int, float] | None = None

    def _now(self) -> float:
        return time.perf_counter() - self._away

    def first_dispatch(self, state: TrainState, step: int) -> None:
        """Wait for the first dispatch, so that the speed does not count compilation."""
        if self._warm is None:
            jax.block_until_ready(state.step)
            self._warm = (step, self._now())

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Do not count the time inside."""
        before = time.perf_counter()
        yield
        self._away += time.perf_counter() - before

    def timing(self, step: int, batch_size: int) -> Timing:
        """Return the timing for the results. The device must be idle."""
        now = self._now()
        if self._warm is not None and step > self._warm[0]:
            self._images_per_second = (step - self._warm[0]) * batch_size / (now - self._warm[1])
        return {"train_seconds": now - self._start, "images_per_second": self._images_per_second}


@contextmanager
def row_writer(metrics: Path, events: Path | None = None) -> Iterator[Callable[[Row], None]]:
    """Yield a function that appends a row with its "step" to a file of rows.

    With `events`, its numbers also go as TensorBoard event files into that folder. Only the first
    process writes.
    """
    with ExitStack() as stack:
        scalars = None
        if events and hosts.is_first():
            from tensorboardX import SummaryWriter

            scalars = stack.enter_context(SummaryWriter(str(events)))

        def write(row: Row) -> None:
            if hosts.is_first():
                append_row(metrics, row)
            for name, value in row.items():
                if scalars and name != "step" and value is not None:
                    scalars.add_scalar(name, value, row["step"])

        yield write


class DivergedError(Exception):
    """A loss is not finite: its step, and the last loss that was finite, if any."""


def followed(
    dispatches: Iterable[tuple[TrainState, int, Metrics]],
    plan: Plan,
    first_step: int,
    pause_at: Collection[int],
    log: Callable[[Mapping[str, Any]], None],
    should_stop: Callable[[], bool],
) -> Iterator[tuple[TrainState, int, bool]]:
    """Pass on a training's states and steps, and whether it should stop; show its progress.

    A terminal shows a bar, a file gets log lines. `log` gets a row with the mean loss at the first
    dispatch after every `log_every_steps`. Losses are read one dispatch late, when they are ready,
    so that nothing waits for the device. They are read at once if the caller uses the state: at a
    step in `pause_at`, or to stop. Raise DivergedError if a loss is not finite.
    """
    last_step, batch_size = plan.last_step, plan.config.batch_size
    on_terminal = sys.stderr.isatty()
    losses: list[float] = []
    since, num_logged = time.perf_counter(), 0

    def read(step: int, metrics: Metrics) -> None:
        nonlocal since, num_logged
        for loss in map(float, np.asarray(metrics["loss"])[: step - first_step - len(losses)]):
            if not math.isfinite(loss):
                raise DivergedError(first_step + len(losses) + 1, losses[-1] if losses else None)
            losses.append(loss)
            bar.update()
        recent = losses[num_logged:]
        if len(recent) < plan.config.log_every_steps and step < last_step:
            return
        now = time.perf_counter()
        speed, loss = len(recent) * batch_size / (now - since), float(np.mean(recent))
        log({"step": step, "loss": loss, "images_per_second": round(speed, 2)})
        bar.set_postfix_str(f"loss {loss:.4f}, {speed:.1f} images/s")
        if not on_terminal:
            logger.info(
                "%s: step %d of %d, loss %.4f, %.1f images/s, %.0f s left",
                *(plan.name, step, last_step, loss, speed, (last_step - step) * batch_size / speed),
            )
        since, num_logged = now, len(losses)

    pending: tuple[int, Metrics] | None = None
    with tqdm(
        total=last_step, initial=first_step, desc=plan.name, unit="step", disable=not on_terminal
    ) as bar:
        for state, step, metrics in dispatches:
            if pending:
                read(*pending)
            pending = (step, metrics)
            stops = should_stop()
            if stops or step in pause_at:
                read(*pending)
                pending = None
            yield state, step, stops
        if pending:
            read(*pending)
