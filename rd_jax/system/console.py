"""What the commands share: their log, and their flags."""

import argparse
import logging
import os
import re
import warnings
from pathlib import Path
from typing import NoReturn

from PIL import Image

from rd_jax.system.errors import UserError
from rd_jax.system.files import as_on_disk


def log_to_stderr() -> None:
    """Shows what this package tells, and of others warnings alone."""
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        level=logging.WARNING,
        force=True,
    )
    logging.getLogger("rd_jax").setLevel(logging.INFO)
    # Images that Pillow would warn of are refused, in our own words.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    # TFDS and orbax tell what is no concern, and log with a traceback what they also raise.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


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
    """The type of a flag that is a path; ~ is the user's home. Raises UserError for a URL."""
    if re.match(r"[\w+.-]+://", text):
        raise _NoFolderError(
            f"{text} is not a folder of this machine: give one, or mount the bucket that it is"
        )
    return as_on_disk(Path(os.path.expanduser(text)))


class _NoFolderError(UserError, argparse.ArgumentTypeError):
    """argparse shows its text, which it would not of another UserError."""
