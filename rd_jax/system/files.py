"""Write files whole or not at all; find the cache folder."""

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
    """Turn an OSError inside into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        hint = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "; free some: no earlier file is lost"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "; make it writable for this user, or choose another place"
        raise UserError(f"cannot write {path}: {error.strerror}{hint}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write the whole file or nothing, and make its folder. Raise UserError if that fails."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".rd_jax-{secrets.token_hex(8)}")  # tempfile ignores umask
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise UserError if a folder, which need not exist yet, cannot be written to."""
    there = next(p for p in (folder, *folder.absolute().parents) if os.path.lexists(p))
    # Make and remove a file: permissions do not say what a mount allows.
    with writing(folder), tempfile.NamedTemporaryFile(dir=there, prefix=".rd_jax-"):
        pass


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether `path`, which need not exist, is `folder` or lies in it; follow links."""
    real = Path(os.path.realpath(path))
    there = filter(os.path.exists, (real, *real.parents))
    return os.path.exists(folder) and any(os.path.samefile(parent, folder) for parent in there)


def user_path(text: str | Path) -> Path:
    """Return a path as a user writes it; ~ is the home folder.

    Raise UserError if there is no such home, or for a URL.
    """
    if "://" in str(text):
        raise UserError(f"{text} is no path on this machine: give one, or mount that bucket")
    path = Path(os.path.expanduser(text))
    if path.parts[:1] == ("~",):
        raise UserError(f"{text}: there is no home folder (HOME is not set): write the path out")
    return path


def cache_folder() -> Path:
    """Return the folder for files that can be made again: $XDG_CACHE_HOME/rd_jax.

    If it cannot be written, warn, and return one that is removed when the process ends.
    """
    try:
        folder = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").absolute() / "rd_jax"
        check_writable(folder)
        return folder
    except UserError as error:
        return temporary_cache(str(error))


@cache
def temporary_cache(problem: str) -> Path:
    """Return a temporary folder instead of the cache, and warn once of its `problem`."""
    remedy = "each run decodes and compiles again; set XDG_CACHE_HOME to another folder"
    logger.warning("no cache is kept (%s): %s", problem, remedy)
    folder = Path(tempfile.mkdtemp(prefix="rd_jax-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
