"""Find the images that a command line names, and a name for the outputs of each."""

import os
from collections.abc import Callable, Sequence
from itertools import chain, count
from pathlib import Path

from rd_jax.data.folders import images_named
from rd_jax.predict.outputs import FOLDERS
from rd_jax.system.errors import UserError


def find_inputs(arguments: Sequence[Path], output: Path) -> dict[Path, str]:
    """Return the images among `arguments` and in the folders among them, each once.

    Keys are paths as the user wrote them. Values are the names of their outputs, from the path
    below the deepest folder that holds all inputs: see `name_of_outputs`. Arguments keep their
    order; a folder's images are sorted. Hidden files and the folder `output` are left out. Raise
    UserError if an argument does not exist, is a pipe or the like, is a folder without images, or
    lies where outputs are written.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        for path in images_named(argument, not_inputs(argument, output)):
            found.setdefault(os.path.abspath(path), path)
    folders = [os.path.abspath(a if a.is_dir() else a.parent) for a in arguments]
    common = os.path.commonpath(folders)
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for key, path in found.items():
        names[path] = name_of_outputs(
            os.path.relpath(key, common), lambda name: name.casefold() in taken
        )
        taken.add(names[path].casefold())
    return names


def not_inputs(argument: Path, output: Path) -> set[str]:
    """Return the folders of outputs: images in them are not inputs.

    Raise UserError if `argument` lies in one.
    """
    own = [os.path.realpath(output / name) for name in FOLDERS]
    real = Path(os.path.realpath(argument))
    if any(real.is_relative_to(folder) for folder in own):
        raise UserError(f"{argument} is where outputs are written: choose another --output")
    return {*own, os.path.realpath(output)} - {str(real)}


def name_of_outputs(image: str, is_taken: Callable[[str], bool]) -> str:
    """Return a free name: the image's without its suffix, with its suffix, or numbered."""
    numbered = (f"{image}_{number}" for number in count(2))
    names = chain((os.path.splitext(image)[0], image), numbered)
    return next(name for name in names if not is_taken(name))
