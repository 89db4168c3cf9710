"""Score arrays and image files with a trained model."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps

from rd_jax.data.decode import Region, in_8_bits, placed, reading, warn_of
from rd_jax.method.score import Scoring
from rd_jax.method.thresholds import Thresholds
from rd_jax.report.heatmap import resized_map
from rd_jax.run.scoring import Score, score_images
from rd_jax.run.trained import load_trained
from rd_jax.system.command import num_processors
from rd_jax.system.errors import UserError

A = TypeVar("A")
B = TypeVar("B")
_MOST_HELD = 2**24  # bytes; a larger image is read again for its outputs, not held in memory


class Predictor(NamedTuple):
    """A trained category, ready to score."""

    score: Score  # uint8 images [B, H, W, 3] -> maps [B, H, W] and scores [B]
    thresholds: Thresholds
    size: tuple[int, int]  # height and width of these images
    resize: str  # how pictures get this size: "stretch" or "fit"
    scoring: Scoring
    categories: tuple[str, ...] = ()  # the categories that the threshold is for


class Prediction(NamedTuple):
    """The result of scoring one image."""

    path: Path  # Path() for a picture that is no file
    score: float
    is_anomalous: bool | None  # None without a threshold
    anomaly_map: np.ndarray  # [h, w] float32 in the predictor's size, without margins of "fit"
    size: tuple[int, int]  # height and width of the picture
    image: np.ndarray | None = None  # [h, w, 3] uint8, as decoded, if it is held

    def full_size_map(self) -> np.ndarray:
        """Return the map in the picture's size, float32, bilinear, with the same maximum."""
        return resized_map(self.anomaly_map, self.size)


class Unreadable(NamedTuple):
    """An image file that could not be decoded, and why, in one line."""

    path: Path
    reason: str


def load_predictor(
    workdir: str | Path, teacher_weights: str | None = None, **rates: float
) -> Predictor:
    """Load the training in the folder of a run, a category or a seed, onto all devices.

    For the arguments see `load_trained`: `rates` are false_positive_rate and
    pixel_false_positive_rate, if they differ from those in training. Raise UserError if there is no
    checkpoint or there are several trainings, if the training is not finished and evaluated, if the
    teacher is not the one trained with, or for a rate that is not allowed.
    """
    trained = load_trained(workdir, teacher_weights, **rates)
    if trained.thresholds is None:
        remedy = "run python -m rd_jax.main --mode eval, which scores normal images"
        if not trained.checkpoint.is_finished:
            remedy = "finish the training with the command that began it"
        raise UserError(
            f"{trained.training.folder} has no thresholds, after step {trained.checkpoint.step} of "
            f"{trained.checkpoint.last_step}: {remedy}"
        )
    how = trained.size, trained.config.resize, trained.scoring
    return Predictor(trained.score, trained.thresholds, *how, trained.categories)


def score_arrays(
    predictor: Predictor, images: np.ndarray, batch_size: int = 16
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return maps [N, H, W], scores [N], and which of N images are anomalous, bool [N].

    Images are uint8 RGB [N, H, W, 3] of the predictor's size. The last value is None if there is no
    threshold, because training held no images out. Raise UserError for other images, or if a score
    is not finite.
    """
    images = np.asarray(images)
    expected = (*predictor.size, 3)
    if images.dtype != np.uint8 or images.shape[1:] != expected:
        shape, sides = (", ".join(map(str, x)) for x in (images.shape, expected))
        raise UserError(
            f"images are {images.dtype} [{shape}]: must be uint8 RGB [N, {sides}]; score_files "
            "takes image files of any size"
        )
    maps, scores = score_images(predictor.score, images, _enough(len(images), batch_size))
    threshold = predictor.thresholds.image_threshold
    return maps, scores, None if threshold is None else scores > threshold


def _enough(num_images: int, batch_size: int) -> int:
    """Return the batch size, or the least power of two that takes all images: each compiles."""
    return min(batch_size, 1 << (max(num_images, 1) - 1).bit_length())


def score_image(predictor: Predictor, image: np.ndarray | Image.Image) -> Prediction:
    """Score one picture of any size, such as a camera's frame.

    The picture is uint8 [h, w], [h, w, 1] or [h, w, 3] RGB, or an image of Pillow, which is turned
    upright by its EXIF data. It is resized as for training, so a picture of a new size compiles
    nothing. Several threads may call this at once. Raise UserError for another kind of picture.

        predictor = load_predictor("runs/bottle")
        result = score_image(predictor, frame)
        print(result.score, result.is_anomalous, result.full_size_map().shape)
    """
    decoded = _decoded(Path(), _picture(image), predictor)
    maps, scores = score_images(predictor.score, decoded.pixels[None], 1)
    return _prediction(predictor, decoded, maps[0], scores[0])


def _picture(image: np.ndarray | Image.Image) -> Image.Image:
    """Return a picture in mode L or RGB. Raise UserError unless it has 8 or 16 bits."""
    if isinstance(image, Image.Image):
        if image.mode in ("F", "I") or 0 in image.size:
            raise UserError(
                f"the image has mode {image.mode} and size {image.size}: must be of 8 bits, or in "
                "mode I;16, and not empty"
            )
        return in_8_bits(ImageOps.exif_transpose(image))
    pixels = np.asarray(image)
    is_picture = pixels.ndim in (2, 3) and (pixels.ndim == 2 or pixels.shape[2] in (1, 3))
    if pixels.dtype != np.uint8 or not is_picture or 0 in pixels.shape:
        raise UserError(
            f"the image is {pixels.dtype} {list(pixels.shape)}: must be uint8 [h, w] or [h, w, 3], "
            "grey or RGB"
        )
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


class _Decoded(NamedTuple):
    """A decoded picture, ready to score."""

    path: Path
    size: tuple[int, int]  # height and width of the picture
    pixels: np.ndarray  # [H, W, 3] uint8, of the predictor's size
    region: Region  # where the picture lies in it
    image: np.ndarray | None = None  # [h, w, 3] uint8, the picture itself, if it is held


def _decoded(path: Path, picture: Image.Image, predictor: Predictor) -> _Decoded:
    size = picture.height, picture.width
    return _Decoded(path, size, *placed(picture, predictor.size, predictor.resize))


def score_files(
    predictor: Predictor,
    paths: Iterable[str | Path],
    batch_size: int = 16,
    hold_images: bool = False,
) -> Iterator[Prediction | Unreadable]:
    """Score image files on all local devices; yield one result for each, in order.

    Files are decoded as for training, in parallel. Any number of files takes the memory of a few
    batches. The results of a batch come before the next batch is complete: with `batch_size` 1, a
    result comes before the next path is read. With `hold_images`, a result has the decoded image,
    unless that is very large. Raise UserError if a score is not finite.

        predictor = load_predictor("runs/bottle")
        for result in score_files(predictor, sorted(Path("photos").glob("*.png"))):
            print(result.path, getattr(result, "score", "unreadable"))
    """
    remarks, num_images = dict[Path, int](), 0

    def read(path: Path) -> _Decoded:
        with reading(path) as image:
            if remark := image.info.get("remark"):
                remarks[path] = remark
            is_held = hold_images and 3 * image.width * image.height <= _MOST_HELD
            held = np.asarray(image.convert("RGB")) if is_held else None
            return _decoded(path, image, predictor)._replace(image=held)

    decoded = _in_parallel(lambda path: attempt(read, Path(path)), paths, batch_size)
    while batch := list(islice(decoded, batch_size)):
        if not num_images:
            batch_size = _enough(len(batch), batch_size)
        num_images += len(batch)
        pixels = [each.pixels for each in batch if isinstance(each, _Decoded)]
        images = np.reshape(pixels, (-1, *predictor.size, 3))  # all may be unreadable
        scored = zip(*score_images(predictor.score, images, batch_size), strict=True)
        for each in batch:
            if isinstance(each, Unreadable):
                yield each
            else:
                yield _prediction(predictor, each, *next(scored))
    warn_of(remarks, num_images)


def _prediction(
    predictor: Predictor, decoded: _Decoded, anomaly_map: np.ndarray, score: np.float32
) -> Prediction:
    threshold = predictor.thresholds.image_threshold
    is_anomalous = None if threshold is None else float(score) > threshold
    anomaly_map = folded(anomaly_map, decoded.region)
    found = float(score), is_anomalous, anomaly_map
    return Prediction(decoded.path, *found, decoded.size, decoded.image)


def folded(anomaly_map: np.ndarray, region: Region) -> np.ndarray:
    """Return the picture's part [h, w] of a map [H, W] whose margins were filled by mirroring.

    Each value in a margin is folded back to the place that it mirrors. So the map keeps its
    maximum, the score that the verdict depends on.
    """
    top, left, h, w = region
    height, width = anomaly_map.shape
    free = [(top, height - top - h), (left, width - left - w)]
    origins = np.pad(np.arange(h * w).reshape(h, w), free, "symmetric")
    picture = np.full(h * w, -np.inf, np.float32)
    np.maximum.at(picture, origins.ravel(), anomaly_map.ravel())
    return picture.reshape(h, w)


def attempt(read: Callable[[Path], A], path: Path) -> A | Unreadable:
    """Return `read` of a file, or why it cannot be read."""
    try:
        return read(path)
    except Exception as error:  # decoders raise all kinds of errors for broken files
        return Unreadable(path, " ".join(str(error).split()) or type(error).__name__)


def _in_parallel(function: Callable[[A], B], items: Iterable[A], at_once: int) -> Iterator[B]:
    """Yield `function` of each item, in order, computed in threads for `at_once` items at a time.

    It takes the next item after a result was taken.
    """
    pool = ThreadPoolExecutor(num_processors())
    submitted = (pool.submit(function, item) for item in items)
    try:
        pending = deque(islice(submitted, at_once))
        while pending:
            yield pending.popleft().result()
            pending.extend(islice(submitted, 1))
    finally:
        pool.shutdown(cancel_futures=True)
