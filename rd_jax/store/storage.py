"""What the storage libraries under checkpoints complain of, in our words."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rd_jax.system.errors import UserError


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Turns what goes wrong in writing a checkpoint into a UserError."""
    try:
        yield
    except Exception as error:  # the storage libraries raise all kinds of errors
        raise UserError(
            f"cannot write a checkpoint into {folder} ({reason_of(error)}); those that were "
            "complete still are, and the same command goes on from the latest"
        ) from error


def reason_of(error: Exception) -> str:
    """What an error of the storage libraries comes down to, in one line."""
    text = str(error) or type(error).__name__
    if os.strerror(errno.ENOSPC) in text:
        return f"{os.strerror(errno.ENOSPC)}: free some"
    return text.splitlines()[0][:200]


@contextmanager
def quiet_about_what_is_given_up() -> Iterator[None]:
    """Orbax leaves other operations behind when one fails; their complaints are no concern."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook
    yield
    sys.unraisablehook = before  # not after a failure: they may come late
