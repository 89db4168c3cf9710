"""Files: whole ones or none, and where those go that can be made again."""

import atexit
import errno
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from rd_jax.system.errors import UserError

logger = logging.getLogger(__name__)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError inside into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "; free some: nothing that was there is lost" if is_full else ""
        raise UserError(f"cannot write {path}: {error.strerror}{hint}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Writes the whole file or nothing: under a temporary name first, then renamed.

    Makes the folder if there is none. Raises UserError if it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".rd_jax-{secrets.token_hex(8)}")  # readable as umask says
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def user_path(text: str | Path) -> Path:
    """A path as a user writes it; ~ is the home folder. Raises UserError if there is none."""
    path = Path(os.path.expanduser(text))
    if path.parts[:1] == ("~",):
        raise UserError(f"{text}: there is no home folder (HOME is not set): write the path out")
    return path


def cache_folder() -> Path:
    """Where everything that can be made again is kept: $XDG_CACHE_HOME/rd_jax.

    Where that cannot be written, a folder that is removed when the process ends; a warning says so.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base).absolute() / "rd_jax"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return folder
    except (OSError, RuntimeError) as error:  # without a home folder
        return temporary_cache(str(error))


@cache
def temporary_cache(problem: str) -> Path:
    """A folder for what would go into the cache; the `problem` with that one is told once."""
    logger.warning(
        "no cache is kept (%s): what it would save is done again each time; set XDG_CACHE_HOME to "
        "a folder that can be written",
        problem,
    )
    base = Path(tempfile.mkdtemp(prefix="rd_jax-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    (base / "rd_jax").mkdir()
    return base / "rd_jax"
