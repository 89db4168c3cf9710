"""What a person and a file see of a running training."""

import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rd_jax.train import Metrics, TrainState

logger = logging.getLogger(__name__)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Appends one JSON line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def drop_rows_after(path: Path, step: int) -> None:
    """Keeps of a file of JSON lines those up to `step`, from which a training goes on."""
    rows = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [f"{row}\n" for row in rows if json.loads(row)["step"] <= step]
    path.write_text("".join(kept), encoding="utf-8")


def followed(
    dispatches: Iterable[tuple[TrainState, int, Metrics]],
    path: Path,
    name: str,
    first_step: int,
    last_step: int,
    batch_size: int,
    log_every_steps: int,
) -> Iterator[tuple[TrainState, int]]:
    """Passes on a training's states and steps, and shows its progress.

    A bar on a terminal, log lines elsewhere; a row in `path` at least every `log_every_steps`
    with the mean loss since the row before. Losses are read one dispatch late, when they are
    there anyway: nothing waits for the device.
    """
    on_terminal = sys.stderr.isatty()
    losses: list[float] = []
    since = time.perf_counter()

    def read(step: int, metrics: Metrics) -> None:
        nonlocal since
        new = np.asarray(metrics["loss"])
        losses.extend(map(float, new))
        bar.update(len(new))
        if len(losses) < log_every_steps and step < last_step:
            return
        now = time.perf_counter()
        speed = len(losses) * batch_size / (now - since)
        seconds_left = (last_step - step) * batch_size / speed
        row = {"step": step, "loss": float(np.mean(losses)), "images_per_second": round(speed, 2)}
        append_row(path, row)
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
            yield state, step
        if pending:
            read(*pending)
