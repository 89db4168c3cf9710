"""What the commands share: their log, and their flags."""

import argparse
import io
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import NoReturn, TextIO

from PIL import Image

from rd_jax.system.errors import UserError
from rd_jax.system.files import user_path


def log_to_stderr() -> None:
    """Shows what this package tells, and of others warnings alone, as far as streams take it."""
    _keep_standard_descriptors()
    sys.stdout, sys.stderr = map(_unfailing, (sys.stdout, sys.stderr))
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


class _Unfailing(io.TextIOWrapper):
    """Drops what nobody reads any more or a full disk does not take: results are in files."""

    def write(self, text: str) -> int:
        """As TextIOWrapper's."""
        try:
            return super().write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        """As TextIOWrapper's."""
        try:
            super().flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)  # where also what is buffered goes
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def _unfailing(stream: TextIO | None) -> TextIO:
    """The stream without what it can fail at; what its encoding lacks is escaped."""
    if stream is None:  # closed
        return _Unfailing(open(os.devnull, "wb"))
    is_own = stream in (sys.__stdout__, sys.__stderr__)  # not a notebook's, or redirected
    if not is_own or not isinstance(stream, io.TextIOWrapper) or os.name == "nt":
        return stream
    stream.flush()
    # The log has no buffer: one that is being emptied refuses what a signal's handler tells.
    is_log = stream is sys.__stderr__
    return _Unfailing(
        open(stream.fileno(), "wb", 0 if is_log else -1, closefd=False),
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=is_log or stream.write_through,
    )


def _keep_standard_descriptors() -> None:
    """Opens those that are closed: files would get their numbers, and what C++ writes to these."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


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
