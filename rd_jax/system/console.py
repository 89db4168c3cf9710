"""What the commands share: their log, and their flags."""

import argparse
import logging
import warnings
from pathlib import Path
from typing import NoReturn

from PIL import Image

from rd_jax.system.errors import UserError
from rd_jax.system.files import user_path


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
    # Of caches that are not there; `cache_folder` says so once.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "Error (read|writ)ing persistent compilation cache entry")
    # ml_collections loads config files by a method that Python calls deprecated.
    warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)


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
    try:
        return user_path(text)
    except UserError as error:  # of other errors argparse says nothing
        raise argparse.ArgumentTypeError(str(error)) from error
