"""One image file to uint8 pixels: upright, in 8 bits, resized."""

import io
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

from rd_jax.data.formats import open_image
from rd_jax.method.size import Region, Size, height_and_width, region_of
from rd_jax.system.errors import printable

logger = logging.getLogger(__name__)

DECODER_VERSION = 4  # part of every cache key: raise it when decoding changes
_LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")  # which make levels that were not written
_RUN_LENGTHS = 3  # zlib's strategy Z_RLE
_ORIENTATION = ExifTags.Base.Orientation
_ORIENTATION_IN_XMP = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])""")
_BRIGHTEST_OF_14_BITS = 64  # in 8 bits
_MOST_PIXELS = 2**28  # 16384 x 16384; files that claim more are refused before they are decoded

# Pillow's own limit warns of 100-megapixel photographs; this one is that of `_upright`.
Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, _MOST_PIXELS)

Notes = dict[Path, tuple[int, int]]  # from which level to which a file holds what looks misread


def resized(image: Image.Image, size: Size, resize: str = "stretch") -> np.ndarray:
    """[H, W, 3] uint8 RGB, PIL bilinear; grey is repeated, what "fit" leaves free is mirrored."""
    return placed(image.convert("RGB"), size, resize)[0]


def placed(
    image: Image.Image,
    size: Size,
    resize: str,
    mode: Literal["symmetric", "constant"] = "symmetric",
) -> tuple[np.ndarray, Region]:
    """[H, W, ...] with the image where `region_of` says, and there; the rest filled by `np.pad`."""
    whole = height_and_width(size)
    region = region_of((image.height, image.width), whole, resize)
    top, left, height, width = region
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    free = [(top, whole[0] - top - height), (left, whole[1] - left - width)]
    return np.pad(pixels, [*free, (0, 0)][: pixels.ndim], mode), region


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


def decode_image(
    path: Path, size: Size, notes: Notes | None = None, resize: str = "stretch"
) -> tuple[np.ndarray, Region]:
    """[H, W, 3] uint8 RGB, as `resized`, and where in it the picture lies."""
    return placed(read_image(path, notes), size, resize)


def decode_mask(
    path: Path | None,
    image: Path,
    size: Size,
    notes: Notes | None = None,
    resize: str = "stretch",
) -> tuple[np.ndarray, Region]:
    """[H, W] bool, resized as the image and thresholded at 0.5, and where in it the picture lies.

    Without a mask, and outside, false.
    """
    whole = height_and_width(size)
    if path is None:
        return np.zeros(whole, bool), (0, 0, *whole)
    levels, region = placed(read_mask(path, image, notes), size, resize, mode="constant")
    return levels > 127, region


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
