"""The images that a command line names, and a name for the outputs of each."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rd_jax.data.images import IMAGE_SUFFIXES
from rd_jax.system.errors import UserError


def find_inputs(
    arguments: Sequence[Path], output: Path, subfolders: Iterable[str]
) -> dict[Path, str]:
    """The image files among `arguments` and below the folders among them, each file once.

    Paths are as the user wrote them; with each stands the name of its outputs, its path below the
    deepest folder that holds all inputs, of which no two are equal.
    Arguments keep their order; a folder's images are sorted, and what is hidden is left out, as
    is the folder `output` where it lies below. Raises UserError if an argument does not exist, is
    a folder without images, or is in one of the `subfolders` of `output` that are written to.
    """
    own = [os.path.realpath(output / name) for name in subfolders]
    found: dict[str, Path] = {}
    for argument in arguments:
        if not argument.exists():
            raise UserError(f"{argument} does not exist: give image files or folders of them")
        if any(Path(os.path.realpath(argument)).is_relative_to(folder) for folder in own):
            raise UserError(f"{argument} is where outputs are written: choose another --output")
        paths = _images_below(argument, [output, *own]) if argument.is_dir() else [argument]
        if not paths:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise UserError(f"{argument} holds no images: expected {suffixes} in or below it")
        for path in paths:
            found.setdefault(os.path.abspath(path), path)
    folders = [os.path.abspath(a if a.is_dir() else a.parent) for a in arguments]
    common = os.path.commonpath(folders)
    return {path: os.path.relpath(key, common) for key, path in found.items()}


def _images_below(folder: Path, skipped: Iterable[Path | str]) -> list[Path]:
    def stop(error: OSError) -> None:
        raise error

    found = []
    seen = {os.path.realpath(path) for path in (folder, *skipped)}  # links may go in circles
    for parent, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        real = {name: os.path.realpath(os.path.join(parent, name)) for name in sorted(folders)}
        folders[:] = [n for n, path in real.items() if n[0] != "." and path not in seen]
        seen.update(real.values())
        found += [Path(parent, name) for name in files if name[0] != "."]
    return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)
