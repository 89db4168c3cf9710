"""What a person and a file see of a running training."""

import logging
import math
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from rd_jax.method.train import Metrics, TrainState

logger = logging.getLogger(__name__)


class Clock:
    """Seconds and speed of one training, over all its resumptions."""

    def __init__(self, timing: Mapping[str, float | None]):
        self._start = time.perf_counter() - (timing["train_seconds"] or 0.0)
        self._images_per_second = timing["images_per_second"]
        self._warm: tuple[int, float] | None = None

    def first_dispatch(self, state: TrainState, step: int) -> None:
        """Waits for the first dispatch, so that the speed is that after compilation."""
        if self._warm is None:
            jax.block_until_ready(state.step)
            self._warm = (step, time.perf_counter())

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What happens inside does not count."""
        before = time.perf_counter()
        yield
        away = time.perf_counter() - before
        self._start += away
        if self._warm is not None:
            self._warm = (self._warm[0], self._warm[1] + away)

    def timing(self, step: int, batch_size: int) -> dict[str, float | None]:
        """What the results say; the device has nothing left to do."""
        now = time.perf_counter()
        if self._warm is not None and step > self._warm[0]:
            self._images_per_second = (step - self._warm[0]) * batch_size / (now - self._warm[1])
        return {"train_seconds": now - self._start, "images_per_second": self._images_per_second}


class Diverged(Exception):  # noqa: N818
    """A loss that is not finite, at `step`; `last_finite` is the last loss that was, if any."""

    def __init__(self, step: int, last_finite: float | None):
        super().__init__(step, last_finite)
        self.step = step
        self.last_finite = last_finite


class Way(NamedTuple):
    """From where to where a training goes, and how often it says so."""

    name: str
    first_step: int
    last_step: int
    batch_size: int
    log_every_steps: int
    pause_at: Collection[int] = ()


def followed(
    dispatches: Iterable[tuple[TrainState, int, Metrics]],
    way: Way,
    log: Callable[[Mapping[str, Any]], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[TrainState, int, bool]]:
    """Passes on a training's states and steps, and whether it should stop; shows its progress.

    A bar on a terminal, log lines elsewhere; a row for `log` with the mean loss since the row
    before, at the first dispatch after every `way.log_every_steps`. Losses are read one dispatch
    late, when they are there anyway, so that nothing waits for the device; but at once at a step
    in `way.pause_at`, or to stop at, where the caller uses the state. Raises Diverged if a loss is
    not finite.
    """
    name, first_step, last_step, batch_size, log_every_steps, pause_at = way
    on_terminal = sys.stderr.isatty()
    losses: list[float] = []
    since, last_read = time.perf_counter(), first_step
    last_finite: float | None = None

    def read(step: int, metrics: Metrics) -> None:
        nonlocal since, last_read, last_finite
        for loss in map(float, np.asarray(metrics["loss"])[: step - last_read]):
            last_read += 1
            if not math.isfinite(loss):
                raise Diverged(last_read, last_finite)
            last_finite = loss
            losses.append(loss)
            bar.update()
        if len(losses) < log_every_steps and step < last_step:
            return
        now = time.perf_counter()
        speed = len(losses) * batch_size / (now - since)
        seconds_left = (last_step - step) * batch_size / speed
        row = {"step": step, "loss": float(np.mean(losses)), "images_per_second": round(speed, 2)}
        log(row)
        bar.set_postfix_str(f"loss {row['loss']:.4f}, {speed:.1f} images/s")
        if not on_terminal:
            logger.info(
                "%s: step %d of %d, loss %.4f, %.1f images/s, %.0f s left",
                *(name, step, last_step, row["loss"], speed, seconds_left),
            )
        losses.clear()
        since = now

    pending: tuple[int, Metrics] | None = None
    with tqdm(
        total=last_step, initial=first_step, desc=name, unit="step", disable=not on_terminal
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
