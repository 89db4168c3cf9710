"""Files: whole ones or none, and where those go that can be made again."""

import errno
import os
import tempfile
import unicodedata
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
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "; free some: nothing that was there is lost" if is_full else ""
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


def cache_folder() -> Path:
    """Where everything that can be made again is kept: $XDG_CACHE_HOME/rd_jax."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rd_jax"
