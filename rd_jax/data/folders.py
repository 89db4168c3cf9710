"""What is in folders; nothing that may be meant as an image is left out in silence."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from rd_jax.data.formats import FORMAT_NAMES, is_in_other_format, looks_like_image
from rd_jax.system.errors import UserError
from rd_jax.system.files import composed

# Of file systems, network drives, Windows and macOS, beside what begins with a dot.
_HIDDEN = {
    *("@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "__MACOSX"),
    *("lost+found", "System Volume Information"),
}
_NEITHER = (
    "is neither a file nor a folder, nor a link to one that can be reached: mend or remove it"
)


def names(folder: Path) -> list[str]:
    """The names in a folder, be they of broken links. Raises UserError if it cannot be listed."""
    try:
        return os.listdir(folder)
    except OSError as error:
        _cannot_be_listed(error)


def listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files and the folders in a folder, sorted; what is hidden is left out.

    Raises UserError if the folder cannot be listed, for what is neither file nor folder, or for
    two folders whose names look the same.
    """
    files: list[Path] = []
    folders: dict[str, Path] = {}
    for path in (folder / name for name in sorted(names(folder)) if not _is_hidden(name)):
        if os.path.isfile(path):
            files.append(path)
        elif not os.path.isdir(path):
            raise UserError(f"{path} {_NEITHER}")
        elif folders.setdefault(composed(path.name), path) != path:
            raise UserError(
                f"two folders in {folder} are called {path.name}, with its accents spelled in two "
                "ways of Unicode: rename or merge one"
            )
    return files, list(folders.values())


def images_by_folder(root: Path) -> dict[str, list[Path]]:
    """The images of each folder in `root`, sorted; of none if there is no `root`.

    Raises UserError for an image that would be left out: beside these folders, in a folder of
    its own inside one, or in a format that is not read.
    """
    if root.name not in names(root.parent):
        return {}
    if not os.path.isdir(root):
        raise UserError(f"{root} is not a folder, nor a link to one that can be reached")
    files, folders = listed(root)
    for path in filter(looks_like_image, files):
        raise UserError(f"{path} lies beside the folders in {root}: move it into one, or elsewhere")
    return {folder.name: _images_in(folder) for folder in folders}


def images_below(folder: Path, skipped: Iterable[Path | str] = ()) -> Iterator[Path]:
    """What looks like an image in a folder and, after that, in those inside, at any depth.

    What is hidden is left out, as are the folders `skipped`. Raises UserError for a folder that
    cannot be listed, or for a pipe or the like named like an image.
    """
    seen = {os.path.realpath(path) for path in (folder, *skipped)}  # links may go in circles
    for parent, folders, files in os.walk(folder, onerror=_cannot_be_listed, followlinks=True):
        real = {name: os.path.realpath(os.path.join(parent, name)) for name in sorted(folders)}
        folders[:] = [n for n, path in real.items() if not _is_hidden(n) and path not in seen]
        seen.update(real.values())
        for path in (Path(parent, name) for name in sorted(files) if not _is_hidden(name)):
            if looks_like_image(path):
                if not os.path.isfile(path) and os.path.exists(path):
                    raise UserError(f"{path} {_NEITHER}")
                yield path


def _images_in(folder: Path) -> list[Path]:
    for inner in filter(looks_like_image, listed(folder)[1]):
        raise UserError(f"{inner} is a folder, named like an image: rename or remove it")
    images = []
    for path in images_below(folder):
        if path.parent != folder:
            raise UserError(f"{path} lies too deep: move it up into {folder}, or elsewhere")
        if is_in_other_format(path):
            raise UserError(f"{path} is an image, but not in {FORMAT_NAMES}: convert it")
        images.append(path)
    return images


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _HIDDEN


def _cannot_be_listed(error: OSError) -> NoReturn:
    raise UserError(
        f"{error.filename} cannot be read ({error.strerror}): mend or move it"
    ) from error
