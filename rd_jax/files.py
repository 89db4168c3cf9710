"""Writing files."""

import os
import tempfile
from pathlib import Path

from rd_jax.errors import UserError


def write_whole(path: Path, content: bytes) -> None:
    """Writes the whole file or nothing: under a temporary name first, then renamed.

    Raises UserError if it cannot be written.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(handle, "wb") as file:
                file.write(content)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
