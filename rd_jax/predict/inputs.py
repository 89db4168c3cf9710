"""The images that a command line names, and a name for the outputs of each."""

import os
from collections.abc import Sequence
from pathlib import Path

from rd_jax.data.folders import images_named
from rd_jax.predict.outputs import FOLDERS
from rd_jax.system.errors import UserError


def find_inputs(arguments: Sequence[Path], output: Path) -> dict[Path, str]:
    """Return what looks like an image among `arguments` and below the folders among them, once.

    Keys are paths as the user wrote them; values are what their outputs are named after: the path
    below the deepest folder that holds all inputs. Arguments keep their order; a folder's images
    are sorted. What is hidden is left out, and so is the folder `output` where it lies below. Raise
    UserError if an argument does not exist, is a pipe or the like, is a folder without images, or
    lies where outputs are written.
    """
    own = [os.path.realpath(output / name) for name in FOLDERS]
    found: dict[str, Path] = {}
    for argument in arguments:
        real = Path(os.path.realpath(argument))
        if any(real.is_relative_to(folder) for folder in own):
            raise UserError(f"{argument} is where outputs are written: choose another --output")
        skipped = {*own, os.path.realpath(output)} - {str(real)}
        for path in images_named(argument, skipped):
            found.setdefault(os.path.abspath(path), path)
    folders = [os.path.abspath(a if a.is_dir() else a.parent) for a in arguments]
    common = os.path.commonpath(folders)
    return {path: os.path.relpath(key, common) for key, path in found.items()}
