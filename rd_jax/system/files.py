"""Files: whole ones or none, and where those go that can be made again."""

import atexit
import errno
import logging
import os
import re
import secrets
import shutil
import tempfile
import unicodedata
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
        hint = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "; free some: nothing that was there is lost"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "; make it writable for this user, or choose another place"
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


def composed(name: str) -> str:
    """A name in the form in which accents typed at a keyboard come; macOS stores another one."""
    return unicodedata.normalize("NFC", name)


def as_on_disk(path: Path) -> Path:
    """The path, or the one that is there and differs only in how Unicode spells its accents."""
    if path == path.parent or os.path.lexists(path):
        return path
    parent = as_on_disk(path.parent)
    there = os.listdir(parent) if os.access(parent, os.R_OK) and os.path.isdir(parent) else []
    alike = [name for name in there if composed(name) == composed(path.name)]
    return parent / (alike[0] if len(alike) == 1 else path.name)


def check_writable(folder: Path) -> None:
    """Raises UserError if nothing can be written into a folder, or to where it is to be made.

    A file is really made and removed: permissions say nothing of what mounts allow.
    """
    there = next(p for p in (folder, *folder.absolute().parents) if os.path.lexists(p))
    with writing(folder), tempfile.NamedTemporaryFile(dir=there, prefix=".rd_jax-"):
        pass


def is_inside(path: Path, folder: Path) -> bool:
    """Whether `path`, there or not, is `folder` or lies in it, whatever links lead there."""
    real = Path(os.path.realpath(path))
    there = filter(os.path.exists, (real, *real.parents))
    return os.path.exists(folder) and any(os.path.samefile(parent, folder) for parent in there)


def user_path(text: str | Path) -> Path:
    """A path as a user writes it; ~ is the home folder, accents are as on disk.

    Raises UserError if there is no such home, or for a URL.
    """
    if re.match(r"[\w+.-]+://", str(text)):
        raise UserError(
            f"{text} is no path on this machine: give one, or mount the bucket that it is"
        )
    path = Path(os.path.expanduser(text))
    if path.parts[:1] == ("~",):
        raise UserError(f"{text}: there is no home folder (HOME is not set): write the path out")
    return as_on_disk(path)


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
        return temporary_cache(getattr(error, "strerror", None) or str(error))


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
