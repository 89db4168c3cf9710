"""What is in folders; nothing that may be meant as an image is left out in silence."""

import os
from pathlib import Path

from PIL import Image

from rd_jax.data.images import IMAGE_SUFFIXES
from rd_jax.system.errors import UserError

_CAMERA_SUFFIXES = {".heic", ".heif", ".dng", ".raw"}  # images that even Pillow does not know


def names(folder: Path) -> list[str]:
    """The names in a folder, be they of broken links. Raises UserError if it cannot be listed."""
    try:
        return os.listdir(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): mend or move it") from error


def listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files and the folders in a folder, sorted; what is hidden is left out.

    Raises UserError if the folder cannot be listed, or for what is neither file nor folder.
    """
    paths = sorted(folder / name for name in names(folder) if not name.startswith("."))
    folders = [path for path in paths if os.path.isdir(path)]
    files = [path for path in paths if os.path.isfile(path)]
    for path in sorted({*paths}.difference(folders, files)):
        raise UserError(
            f"{path} is neither a file nor a folder, nor a link to one that can be reached: mend "
            "or remove it"
        )
    return files, folders


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
    for path in filter(_is_image, files):
        raise UserError(f"{path} lies beside the folders in {root}: move it into one, or elsewhere")
    return {folder.name: _images_in(folder) for folder in folders}


def _images_in(folder: Path) -> list[Path]:
    files, folders = listed(folder)
    for inner in folders:
        if _is_image(inner):
            raise UserError(f"{inner} is a folder, named like an image: rename or remove it")
        if any(map(_is_image, listed(inner)[0])):
            raise UserError(f"{inner} holds images: move them up into {folder}, or elsewhere")
    images = [path for path in files if _is_image(path)]
    for path in sorted({*files}.difference(images)):
        if path.suffix.lower() in _CAMERA_SUFFIXES | Image.registered_extensions().keys():
            suffixes = ", ".join(IMAGE_SUFFIXES)
            raise UserError(f"{path} is an image, but not in {suffixes}: convert it")
    return images


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES
