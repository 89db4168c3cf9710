"""What the commands besides `main` share."""

import argparse
import os
from pathlib import Path
from typing import NoReturn

from rd_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are UserErrors and whose help is a module's docstring as it is."""

    def __init__(self, command: str, docstring: str | None):
        super().__init__(
            command,
            description=docstring,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raises UserError instead of printing the usage and exiting."""
        raise UserError(f"{message} (see --help)")


def path(text: str) -> Path:
    """The type of a flag that is a path; ~ is the user's home."""
    return Path(os.path.expanduser(text))
