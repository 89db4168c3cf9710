"""The images that a command line names, and a name for the outputs of each."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rd_jax.data.folders import images_below
from rd_jax.system.errors import UserError
from rd_jax.system.files import as_on_disk


def find_inputs(
    arguments: Sequence[Path], output: Path, subfolders: Iterable[str]
) -> dict[Path, str]:
    """What looks like an image among `arguments` and below the folders among them, each file once.

    Paths are as the user wrote them; with each stands the name of its outputs, its path below the
    deepest folder that holds all inputs, of which no two are equal.
    Arguments keep their order; a folder's images are sorted, and what is hidden is left out, as
    is the folder `output` where it lies below. Raises UserError if an argument does not exist, is
    a folder without images, or is in one of the `subfolders` of `output` that are written to.
    """
    own = [os.path.realpath(output / name) for name in subfolders]
    found: dict[str, Path] = {}
    arguments = [as_on_disk(argument) for argument in arguments]
    for argument in arguments:
        if not argument.exists():
            raise UserError(f"{argument} does not exist: give image files or folders of them")
        if any(Path(os.path.realpath(argument)).is_relative_to(folder) for folder in own):
            raise UserError(f"{argument} is where outputs are written: choose another --output")
        is_folder = argument.is_dir()
        paths = sorted(images_below(argument, [output, *own])) if is_folder else [argument]
        if not paths:
            raise UserError(f"{argument} holds no images, nor does any folder in it")
        for path in paths:
            found.setdefault(os.path.abspath(path), path)
    folders = [os.path.abspath(a if a.is_dir() else a.parent) for a in arguments]
    common = os.path.commonpath(folders)
    return {path: os.path.relpath(key, common) for key, path in found.items()}
