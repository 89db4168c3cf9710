"""What is in folders; nothing that may be meant as an image is left out in silence."""

import os
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from rd_jax.data.formats import is_in_other_format, is_named_like_image, looks_like_image
from rd_jax.data.headers import FORMAT_NAMES
from rd_jax.system.errors import UserError

# Of file systems, network drives, Windows and macOS, beside what begins with a dot.
_HIDDEN = {
    *("@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "__MACOSX"),
    *("lost+found", "System Volume Information"),
}
_NEITHER = (
    "is neither a file nor a folder, nor a link to one that can be reached: mend or remove it"
)


class Listing(NamedTuple):
    """What is in a folder, sorted; what is hidden is left out."""

    folder: Path
    files: list[Path]
    folders: dict[str, Path]  # by name


def normalised(name: str) -> str:
    """Return a name with accents as they are typed at a keyboard; macOS stores another form."""
    return unicodedata.normalize("NFC", name)


def listed(folder: Path) -> Listing:
    """List a folder.

    Raises UserError if that cannot be done, for what is neither file nor folder, or for two
    folders whose names look the same.
    """
    files: list[Path] = []
    folders: dict[str, Path] = {}
    for path in (folder / name for name in sorted(names(folder)) if not _is_hidden(name)):
        if os.path.isfile(path):
            files.append(path)
        elif not os.path.isdir(path):
            raise UserError(f"{path} {_NEITHER}")
        elif folders.setdefault(normalised(path.name), path) != path:
            raise UserError(
                f"two folders in {folder} are called {path.name}, with its accents spelled in two "
                "ways of Unicode: rename or merge one"
            )
    return Listing(folder, files, folders)


def names(folder: Path) -> list[str]:
    """Return the names in a folder. Raises UserError if it cannot be listed."""
    try:
        return os.listdir(folder)
    except OSError as error:
        _cannot_be_listed(error)


def images_by_folder(root: Path) -> dict[str, list[Path]]:
    """Return the images in each folder in `root`, by the folder's name.

    Raises UserError for images that lie elsewhere below `root`, or are in another format.
    """
    there = listed(root)
    for path in filter(looks_like_image, there.files):
        raise UserError(f"{path} lies beside the folders in {root}: move it into one, or elsewhere")
    return {name: _images_in(folder) for name, folder in there.folders.items()}


def _images_in(folder: Path) -> list[Path]:
    there = listed(folder)
    for inner in there.folders.values():
        if is_named_like_image(inner):
            raise UserError(f"{inner} is a folder, named like an image: rename or remove it")
        for path in images_below(inner, [folder]):
            raise UserError(f"{path} lies too deep: move it up into {folder}, or elsewhere")
    images = list(filter(looks_like_image, there.files))
    for path in filter(is_in_other_format, images):
        raise UserError(f"{path} is an image, but not in {FORMAT_NAMES}: convert it")
    return images


def images_below(folder: Path, skipped: Iterable[Path | str] = ()) -> Iterator[Path]:
    """Yield what looks like an image in a folder and, after that, in those inside, at any depth.

    What is hidden is left out, as are the folders `skipped`. Raises UserError for a folder that
    cannot be listed, or for a pipe or the like named like an image.
    """
    seen = set(map(os.path.realpath, skipped))  # links may go in circles
    if os.path.realpath(folder) in seen:
        return
    seen.add(os.path.realpath(folder))
    for parent, folders, files in os.walk(folder, onerror=_cannot_be_listed, followlinks=True):
        real = {name: os.path.realpath(os.path.join(parent, name)) for name in sorted(folders)}
        folders[:] = [n for n, path in real.items() if not _is_hidden(n) and path not in seen]
        seen.update(real.values())
        for path in (Path(parent, name) for name in sorted(files) if not _is_hidden(name)):
            if looks_like_image(path):
                if not os.path.isfile(path) and os.path.exists(path):
                    raise UserError(f"{path} {_NEITHER}")
                yield path


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _HIDDEN


def _cannot_be_listed(error: OSError) -> NoReturn:
    raise UserError(
        f"{error.filename} cannot be read ({error.strerror}): mend or move it"
    ) from error
