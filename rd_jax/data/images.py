"""Image files to uint8 arrays: decoded and resized once, in parallel, cached on disk."""

import hashlib
import io
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from rd_jax.data.cache import cached_array
from rd_jax.data.formats import open_image
from rd_jax.method.size import Size, height_and_width
from rd_jax.system import hosts
from rd_jax.system.environment import num_processors
from rd_jax.system.errors import UserError, printable

logger = logging.getLogger(__name__)

DECODER_VERSION = 3  # part of every cache key: raise it when decoding changes
_LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")  # which make levels that were not written
_RUN_LENGTHS = 3  # zlib's strategy Z_RLE
_ORIENTATION = ExifTags.Base.Orientation
_ORIENTATION_IN_XMP = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])""")
_BRIGHTEST_OF_14_BITS = 64  # in 8 bits
_MOST_PIXELS = 2**28  # 16384 x 16384; files that claim more are refused before they are decoded

# Pillow's own limit warns of 100-megapixel photographs; this one is that of `_upright`.
Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, _MOST_PIXELS)

Notes = dict[Path, tuple[int, int]]  # from which level to which a file holds what looks misread


def resized(image: Image.Image, size: Size) -> np.ndarray:
    """[H, W, 3] uint8 RGB, PIL bilinear, aspect ratio ignored; grey is repeated."""
    height, width = height_and_width(size)
    return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))


def _upright(path: Path) -> Image.Image:
    """The one picture in a file, upright. Raises ValueError if its pixels have no such reading."""
    # From a stream: what Pillow maps into memory by its name, a TIFF that is turned, it garbles.
    with path.open("rb") as stream, open_image(stream) as file:
        if file.width * file.height > _MOST_PIXELS:
            raise ValueError(
                f"{file.width} x {file.height} pixels are more than {_MOST_PIXELS}: scale it down"
            )
        # The first picture of a JPEG is the photograph; others are previews or depth.
        num_pictures = 1 if file.format == "MPO" else getattr(file, "n_frames", 1)
        if num_pictures > 1:
            raise ValueError(f"{num_pictures} pictures in one file: save the one that is meant")
        tags = getattr(file, "tag_v2", {})
        bits = np.max(tags.get(ExifTags.Base.BitsPerSample, 8))
        if 8 < bits < 16:
            raise ValueError(
                f"pixels of {bits} bits would be read as too dark; convert it to 8 or 16 bits"
            )
        # Pillow scales the deep levels of PNM files to 16 bits.
        has_white = file.mode not in ("I", "F") or (file.mode, file.format) == ("I", "PPM")
        if not has_white or np.max(tags.get(ExifTags.Base.SampleFormat, 1)) > 1:
            raise ValueError(
                "32-bit, signed or fractional pixels have no defined white; convert it to 8 or "
                "16 bits"
            )
        is_deep = file.mode[0] == "I" or (
            file.format in ("PNG", "TIFF") and ";16" in str(getattr(file, "tile", ())[:1])
        )
        # The one kind of negative that Pillow does not make positive.
        is_negative = file.mode == "I;16" and tags.get(ExifTags.Base.PhotometricInterpretation) == 0
        image = _turned(file)
        is_lossy = file.format in _LOSSY or "jpeg" in str(file.info.get("compression"))
        image.info |= {"is_deep": is_deep, "is_lossy": is_lossy}
    if is_negative:
        image = Image.fromarray(65535 - np.asarray(image, np.uint16))
        image.info |= {"is_deep": True, "is_lossy": False}
    # Which Pillow would warn of.
    is_transparent_palette = image.mode == "P" and "transparency" in image.info
    return image.convert("RGBA") if is_transparent_palette else image


def _turned(file: Image.Image) -> Image.Image:
    """The picture turned upright by the EXIF data of its file or else the XMP data."""
    is_turned = _ORIENTATION in getattr(file, "tag_v2", {})  # by Pillow, when it loads the pixels
    file.load()  # these data may stand behind the pixels
    try:
        for kind in ("APP1", "app1", "xmp"):  # ImageMagick's, which Pillow does not know
            if profile := file.info.get(f"Raw profile type {kind}"):
                data = bytes.fromhex("".join(profile.split("\n")[3:]))
                file.info.setdefault("exif" if data.startswith(b"Exif") else "xmp", data)
        exif = file.getexif()
    except Exception as error:  # all kinds of them
        raise ValueError(f"its EXIF data cannot be read ({error}): remove them") from error
    if not is_turned and _ORIENTATION not in exif:
        xmp = file.info.get("xmp") or file.info.get("XML:com.adobe.xmp", "").encode()
        if found := _ORIENTATION_IN_XMP.search(xmp):
            exif[_ORIENTATION] = int(found[1])
    return ImageOps.exif_transpose(file)


def read_image(path: Path, notes: Notes | None = None) -> Image.Image:
    """The image upright and in RGB; alpha is dropped. Notes the range of 16 bits if dark."""
    image = _upright(path)
    is_deep_grey = image.mode[0] == "I"
    eight_bits = (
        Image.fromarray(_eight_bits(np.asarray(image, np.uint16))) if is_deep_grey else image
    )
    rgb = eight_bits.convert("RGB")
    if notes is not None and image.info["is_deep"]:
        darkest, brightest = np.transpose(rgb.getextrema())
        if brightest.max() <= _BRIGHTEST_OF_14_BITS:
            notes[path] = (int(darkest.min()), int(brightest.max()))
    return rgb


def read_mask(path: Path, image: Path, notes: Notes | None = None) -> Image.Image:
    """The mask of an anomalous image, upright and in grey, above 127 where anomalous.

    Its level is that of its brightest colour. In a mask without levels above half white that is
    not lossy these are labels, of which all but 0 are anomalous. Notes the levels between.
    Raises ValueError if the mask has another size than the image, if none of its pixels is
    anomalous, or all at several levels, or if some are transparent, so that their colour may mean
    anything.
    """
    mask, masked = _upright(path), _upright(image)
    if mask.size != masked.size:
        raise ValueError(
            f"the mask has {mask.width} x {mask.height} pixels, its image {image} "
            f"{masked.width} x {masked.height}"
        )
    if mask.has_transparency_data and np.asarray(mask.convert("RGBA"))[..., 3].min() < 255:
        raise ValueError("the mask has transparent pixels: save it without an alpha channel")
    if mask.mode[0] == "I":
        levels, white = np.asarray(mask, np.uint16), 65535
    else:
        levels, white = np.maximum.reduce([*map(np.asarray, mask.convert("RGB").split())]), 255
    lowest, highest, is_lossy = int(levels.min()), int(levels.max()), mask.info["is_lossy"]
    are_labels = highest <= white // 2 and not is_lossy
    anomalous = levels > (0 if are_labels else white // 2)
    if not anomalous.any() or (anomalous.all() and lowest < white):
        share = "all" if anomalous.any() else "none"
        raise ValueError(
            f"mask values are {lowest} to {highest}, of which {share} would be anomalous: write "
            "anomalous pixels as 255, the others as 0"
        )
    noise = white // 8 if is_lossy else 0
    between = levels[(levels > noise) & (levels < highest) & (levels <= white // 2)]
    if notes is not None and between.size:
        notes[path] = (int(between.min()), int(between.max()))
    return Image.fromarray(np.uint8(255) * anomalous if are_labels else _eight_bits(levels))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """uint8 of uint8 or of uint16, which Pillow would clip."""
    return values if values.dtype == np.uint8 else (values / 257 + 0.5).astype(np.uint8)


def warn_of_dark_images(notes: Mapping[Path, tuple[int, int]], num_images: int) -> None:
    """Says which images of 16 bits may have been recorded with less."""
    _warn(
        notes,
        num_images,
        "images have 16 bits and no value above a quarter of white",
        "in 8 bits. They are taken to be that dark: if a camera recorded them with 10 to 14 bits, "
        "scale these to 16",
    )


def warn_of_levels(notes: Mapping[Path, tuple[int, int]], num_masks: int) -> None:
    """Says which masks are not black and white."""
    _warn(
        notes,
        num_masks,
        "masks have levels between normal and anomalous",
        "there. Pixels above half white are anomalous, or in a mask without any, all but 0: write "
        "anomalous pixels as 255, the others as 0, if other ones are meant",
    )


def _warn(notes: Mapping[Path, tuple[int, int]], total: int, what: str, advice: str) -> None:
    if notes:
        path = min(notes)
        text = "%d of %d %s, e.g. %s: %d to %d %s"
        logger.warning(text, len(notes), total, what, printable(str(path)), *notes[path], advice)


def decode_image(path: Path, size: Size, notes: Notes | None = None) -> np.ndarray:
    """[H, W, 3] uint8 RGB, as `resized`."""
    return resized(read_image(path, notes), size)


def decode_mask(
    path: Path | None, image: Path, size: Size, notes: Notes | None = None
) -> np.ndarray:
    """[H, W] bool, resized as the image and thresholded at 0.5; without a mask false."""
    height, width = height_and_width(size)
    if path is None:
        return np.zeros((height, width), bool)
    mask = read_mask(path, image, notes).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(mask) > 127


def png(pixels: np.ndarray) -> bytes:
    """The file of an image [h, w] or [h, w, 3], uint8, or [h, w] uint16."""
    file = io.BytesIO()
    # Five times as fast as the default for a tenth more bytes; it is what takes longest.
    Image.fromarray(pixels).save(file, "PNG", compress_level=1, compress_type=_RUN_LENGTHS)
    return file.getvalue()


def jpeg(pixels: np.ndarray) -> bytes:
    """The file of an image [h, w, 3], uint8: a sixth of the PNG's size, in a tenth of its time."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92)
    return file.getvalue()


def each_file(read: Callable[..., Any], paths: Sequence, *others: Sequence) -> list:
    """`read` of all, in parallel; one error names all files that cannot be read."""

    def attempt(path: Path, *its_others: Any) -> tuple[Any, str | None]:
        try:
            return read(path, *its_others), None
        except Exception as error:  # decoders raise all kinds of errors for broken files
            return None, f"{path} ({str(error) or type(error).__name__})"

    with ThreadPoolExecutor(num_processors()) as pool:
        results = list(pool.map(attempt, paths, *others))
    failures = [failure for _, failure in results if failure]
    if failures:
        shown = "; ".join(failures[:3]) + ("; ..." if len(failures) > 3 else "")
        raise UserError(
            f"{len(failures)} of {len(paths) - paths.count(None)} files cannot be read: {shown}. "
            "Replace or remove them."
        )
    return [value for value, _ in results]


def content_sha256(paths: Sequence[Path | None]) -> str:
    """A hash of what the files hold, in order. Raises UserError if processes read other files."""

    def digest(path: Path | None) -> bytes:
        if path is None:
            return bytes(32)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    with hosts.together():
        digests = each_file(digest, paths)
    sha256 = hashlib.sha256(b"".join(digests)).hexdigest()
    if not hosts.all_same(sha256):
        where = os.path.commonpath([path for path in paths if path])
        raise UserError(f"the processes read different files in {where}: give all the same data")
    return sha256


def _load(
    decode: Callable[..., np.ndarray],
    files: Sequence[Sequence[Path | None]],
    shape: tuple[int, ...],
    dtype: type,
    sha256: str | None,
) -> tuple[np.ndarray, Notes]:
    """What `decode` makes and notes of one file of each sequence [N] in turn: [N, *shape], notes.

    The cache is keyed by what the files hold, so that an edited file is never served stale.
    """
    num_files = len(files[0])
    if not num_files:
        return np.empty((0, *shape), dtype), {}
    row = np.dtype([("pixels", dtype, shape), ("note", np.uint16, 2)])

    def decoded(part: range) -> np.ndarray:
        chosen = [paths[part.start : part.stop] for paths in files]
        notes: Notes = {}
        rows = np.empty(len(part), row)
        rows["pixels"] = each_file(partial(decode, size=shape[:2], notes=notes), *chosen)
        rows["note"] = [notes.get(path, (0, 0)) if path else (0, 0) for path in chosen[0]]
        return rows

    sha256 = sha256 or content_sha256([path for paths in files for path in paths])
    key = f"{sha256}-{decode.__name__}-{shape[0]}x{shape[1]}-v{DECODER_VERSION}"
    rows = cached_array(key, (num_files,), row, decoded)
    notes = dict(zip(files[0], map(tuple, rows["note"].tolist()), strict=True))
    return rows["pixels"], {path: note for path, note in notes.items() if path and note[1]}


def load_images(paths: Sequence[Path], size: Size, sha256: str | None = None) -> np.ndarray:
    """[N, H, W, 3] uint8 RGB; `sha256` is their `content_sha256`, if it is known.

    Raises UserError naming the files that cannot be read.
    """
    images, notes = _load(decode_image, [paths], (*height_and_width(size), 3), np.uint8, sha256)
    warn_of_dark_images(notes, len(paths))
    return images


def load_masks(
    paths: Sequence[Path | None], images: Sequence[Path], size: Size, sha256: str | None = None
) -> np.ndarray:
    """[N, H, W] bool, true where anomalous; None stands for an image without anomaly.

    `sha256` is the `content_sha256` of masks and images, if it is known. Raises UserError naming
    the masks that cannot be read, or be those of their images: see `read_mask`.
    """
    masks, notes = _load(decode_mask, [paths, images], height_and_width(size), np.bool_, sha256)
    warn_of_levels(notes, len(paths) - paths.count(None))
    return masks
