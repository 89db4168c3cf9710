"""Files: whole ones or none, and where those go that can be made again."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rd_jax.system.errors import UserError


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
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".rd_jax-")
        try:
            with open(handle, "wb") as file:
                file.write(content)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)


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


def cache_folder() -> Path:
    """Where everything that can be made again is kept: $XDG_CACHE_HOME/rd_jax."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rd_jax"
