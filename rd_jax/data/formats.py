"""Which files are images: one rule for training and for predictions."""

import mimetypes
import os
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from rd_jax.data.headers import CAMERA_SUFFIXES, FORMATS, open_image

LOSSLESS_SUFFIXES = (".bmp", ".gif", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff")
# Images for which Pillow has no media type, or which it does not know at all.
_OTHERS = (
    *(".czi", ".dcm", ".dds", ".dicom", ".exr", ".fits", ".hdr", ".heic", ".heif", ".hif", ".jls"),
    *(".jxl", ".jxr", ".jxs", ".lif", ".mha", ".mrxs", ".nd2", ".ndpi", ".nii", ".npy", ".npz"),
    *(".nrrd", ".oib", ".pfm", ".qoi", ".scn", ".svs", ".vsi", ".xcf"),
)


def looks_like_image(path: Path) -> bool:
    """Say if a file is meant as an image: by its suffix or, if that says nothing, its content."""
    if _suffix(path) in _media_types():
        return is_named_like_image(path)
    return os.path.isfile(path) and _is_recognised(path)


def is_named_like_image(path: Path) -> bool:
    """Say if the suffix is that of an image; the file is not opened."""
    return _media_types().get(_suffix(path), "").startswith("image/")


def is_in_other_format(path: Path) -> bool:
    """Say if an image is in none of FORMATS; it is opened if its suffix is that of another one."""
    form = Image.registered_extensions().get(_suffix(path))
    return form not in FORMATS and is_named_like_image(path) and not _is_recognised(path)


def _is_recognised(path: Path) -> bool:
    try:
        with open(path, "rb") as stream, open_image(stream):
            return True
    except UnidentifiedImageError:
        return False
    except Exception:  # broken or locked: whoever decodes it says why
        return True


def _suffix(path: Path) -> str:
    return path.suffix.lower().rstrip()


@cache
def _media_types() -> dict[str, str]:
    """Return media types by suffix, of Python and Pillow and not of the machine's own list."""
    of_pillow = {s: Image.MIME.get(form, "") for s, form in Image.registered_extensions().items()}
    return {
        **mimetypes.MimeTypes().types_map[True],
        **{suffix: kind for suffix, kind in of_pillow.items() if kind.startswith("image/")},
        **dict.fromkeys([*CAMERA_SUFFIXES, *_OTHERS], "image/*"),
    }
