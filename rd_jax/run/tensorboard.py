"""Rows of metrics as TensorBoard event files, too."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rd_jax.store.rows import append_row
from rd_jax.system.errors import UserError


def check_tensorboard() -> None:
    """Raises UserError if the package that writes event files is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError("config.tensorboard=True needs pip install tensorboardX")


@contextmanager
def event_writer(folder: Path, metrics: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that appends a row with its "step" to `metrics`, and its numbers to `folder`."""
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(folder)) as events:

        def write(row: Mapping[str, Any]) -> None:
            append_row(metrics, row)
            for name, value in row.items():
                if name != "step" and value is not None:
                    events.add_scalar(name, value, row["step"])

        yield write
