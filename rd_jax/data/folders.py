"""Find images in folders. No file that may be meant as an image is ignored silently.

Training and predictions have the same rule of what is an image.
"""

import mimetypes
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, NoReturn

from PIL import Image, UnidentifiedImageError

from rd_jax.data.headers import CAMERA_SUFFIXES, open_image
from rd_jax.system.errors import UserError

# Hidden folders of file systems, network drives, Windows and macOS, beside names with a dot.
_HIDDEN = {
    *("@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "__MACOSX"),
    *("lost+found", "System Volume Information"),
}
# Images for which Pillow has no media type, or which it does not know at all.
_OTHERS = (
    *(".czi", ".dcm", ".dds", ".dicom", ".exr", ".fits", ".hdr", ".heic", ".heif", ".hif", ".jls"),
    *(".jxl", ".jxr", ".jxs", ".lif", ".mha", ".mrxs", ".nd2", ".ndpi", ".nii", ".npy", ".npz"),
    *(".nrrd", ".oib", ".pfm", ".qoi", ".scn", ".svs", ".vsi", ".xcf"),
)


class Listing(NamedTuple):
    """The files and folders in a folder, sorted, without hidden ones."""

    folder: Path
    files: list[Path]
    folders: dict[str, Path]  # by name


def normalised(name: str) -> str:
    """Return a name with accents as a keyboard types them. macOS stores another form."""
    return unicodedata.normalize("NFC", name)


def letters(name: str) -> str:
    """Return the letters and digits of a name, in one case."""
    return re.sub(r"[\W_]", "", name.casefold())


def listed(folder: Path, expected: Sequence[str] = ()) -> Listing:
    """List a folder.

    Raises UserError if it cannot be listed, for an entry that is neither file nor folder, for two
    folders whose names look the same, or for a name that is `expected` but for case and signs.
    """
    files: list[Path] = []
    folders: dict[str, Path] = {}
    try:
        names = sorted(name for name in os.listdir(folder) if not _is_hidden(name))
    except OSError as error:
        _cannot_be_listed(error)
    for path in (folder / name for name in names):
        if os.path.isfile(path):
            files.append(path)
        elif not os.path.isdir(path):
            _reach_nothing(path)
        elif folders.setdefault(normalised(path.name), path) != path:
            raise UserError(
                f"two folders in {folder} are called {path.name}, with its accents spelled in two "
                "ways of Unicode: rename or merge one"
            )
    for name, right in ((name, right) for name in folders for right in expected):
        if name != right and letters(name) == letters(right):
            raise UserError(f"{folders[name]} is not called {right}: rename or move it")
    return Listing(folder, files, folders)


def images_by_folder(root: Path, skipped: Path | None = None) -> dict[str, list[Path]]:
    """Return the images in each folder in `root`, except `skipped`, by the folder's name.

    Raises UserError for images that lie elsewhere below `root`.
    """
    there = listed(root)
    for path in filter(looks_like_image, there.files):
        raise UserError(f"{path} lies beside the folders in {root}: move it into one, or elsewhere")
    images = {}
    for name, folder in there.folders.items():
        if folder == skipped:
            continue
        inside = listed(folder)
        for path in (p for inner in inside.folders.values() for p in images_below(inner, [folder])):
            raise UserError(f"{path} lies too deep: move it up into {folder}, or elsewhere")
        images[name] = list(filter(looks_like_image, inside.files))
    return images


def images_named(argument: Path, skipped: Iterable[Path | str] = ()) -> list[Path]:
    """Return the image that a command names, or the sorted images below the folder that it names.

    The folders `skipped` are left out. Raise UserError if the argument does not exist, is a pipe or
    the like, or is a folder without images.
    """
    if not argument.exists():
        raise UserError(f"{argument} does not exist: give image files or folders of them")
    if not (argument.is_file() or argument.is_dir()):
        raise UserError(f"{argument} is neither a file nor a folder, but a pipe or a device")
    paths = sorted(images_below(argument, skipped)) if argument.is_dir() else [argument]
    if not paths:
        raise UserError(f"{argument} holds no images, nor does any folder in it")
    return paths


def images_below(folder: Path, skipped: Iterable[Path | str] = ()) -> Iterator[Path]:
    """Yield the images in a folder, then those in the folders inside it, at any depth.

    Hidden files and the folders `skipped` are left out. Raises UserError for a folder that cannot
    be listed, or for a pipe or the like named like an image.
    """
    seen = set(map(os.path.realpath, skipped))  # links may go in circles
    for parent, folders, files in os.walk(folder, onerror=_cannot_be_listed, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for path in (Path(parent, name) for name in sorted(files) if not _is_hidden(name)):
            if looks_like_image(path):
                if not os.path.isfile(path) and os.path.exists(path):
                    _reach_nothing(path)
                yield path


def looks_like_image(path: Path) -> bool:
    """Return whether a file is meant as an image, by its suffix or, if unknown, its content."""
    if kind := _media_types().get(path.suffix.lower().rstrip()):
        return kind.startswith("image/")
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as stream, open_image(stream):
            return True
    except UnidentifiedImageError:
        return False
    except Exception:  # broken or locked: decoding will say why
        return True


@cache
def _media_types() -> dict[str, str]:
    """Return media types by suffix, from Python and Pillow, not from the machine's own list."""
    of_pillow = {s: Image.MIME.get(form, "") for s, form in Image.registered_extensions().items()}
    return {
        **mimetypes.MimeTypes().types_map[True],
        **{suffix: kind for suffix, kind in of_pillow.items() if kind.startswith("image/")},
        **dict.fromkeys([*CAMERA_SUFFIXES, *_OTHERS], "image/*"),
    }


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _HIDDEN


def _cannot_be_listed(error: OSError) -> NoReturn:
    raise UserError(
        f"{error.filename} cannot be read ({error.strerror}): mend or move it"
    ) from error


def _reach_nothing(path: Path) -> NoReturn:
    raise UserError(
        f"{path} is neither a file nor a folder, nor a link to one that can be reached: mend or "
        "remove it"
    )
