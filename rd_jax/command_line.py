"""What the commands besides `main` share."""

import argparse
from typing import NoReturn

from rd_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are UserErrors."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError instead of printing the usage and exiting."""
        raise UserError(f"{message} (see --help)")
