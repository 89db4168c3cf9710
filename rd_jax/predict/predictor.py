"""Scores and anomaly maps of arrays and of image files, by what a training left."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from rd_jax.config import Config, size_of
from rd_jax.data.decode import Notes, placed, read_image, warn_of_dark_images
from rd_jax.method.calibration import Calibration
from rd_jax.method.size import Region, cropped
from rd_jax.run.build import scorer_of
from rd_jax.run.scoring import Scorer, on_devices, score_images
from rd_jax.run.trained import load_trained
from rd_jax.system.environment import num_processors

A = TypeVar("A")
B = TypeVar("B")
_BATCHES_AHEAD = 2  # decoded while one is scored
_MOST_HELD = 2**24  # bytes of an image that is held until its outputs are written, not read again


class Predictor(NamedTuple):
    """A trained category, ready to score."""

    config: Config
    scorer: Scorer
    variables: tuple[Any, Any]  # the teacher's and the student's
    calibration: Calibration
    categories: tuple[str, ...] = ()  # of one training for all: those that the threshold is for


class Prediction(NamedTuple):
    """What one image scored."""

    path: Path
    score: float
    is_anomalous: bool | None  # None without a threshold
    anomaly_map: np.ndarray  # [H, W] float32, of the config's image_size; by resize="fit" less
    image: np.ndarray | None = None  # [h, w, 3] uint8, as decoded, if it was to be held


class Unreadable(NamedTuple):
    """An image file that could not be decoded, and why, in one line."""

    path: Path
    reason: str


def load_predictor(
    workdir: str | Path, teacher_weights: str | None = None, **changes: Any
) -> Predictor:
    """What the one training in this folder, of a run, a category or a seed, learnt.

    Of one for all categories, the folder of one gives its thresholds, that of the run one for all.
    It is on all local devices. `teacher_weights`, as of `load_teacher`, says where the teacher's
    weights are by now, if not where they were. `changes` are of fields of the config that say how
    to decide: map_fusion, blur_sigma, image_score, false_positive_rate, pixel_false_positive_rate.
    Raises UserError if there is no checkpoint, or several trainings, if the training is not
    finished and evaluated, if the teacher is not the one trained with, or for a change that is not
    allowed.
    """
    trained = load_trained(workdir, teacher_weights, **changes)
    config = trained.config
    config.dtype = trained.scoring_dtype()
    variables = on_devices(trained.teacher.variables, trained.checkpoint.student_variables)
    calibration = trained.calibration(config.dtype)
    return Predictor(config, scorer_of(config), variables, calibration, trained.categories)


def score_arrays(
    predictor: Predictor,
    images: np.ndarray,
    batch_size: int = 16,
    regions: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Maps [N, H, W], scores [N], and which are anomalous [N] bool, of uint8 RGB [N, H, W, 3].

    With `regions` [N, 4] (top, left, height, width), where in the images the pictures lie, nothing
    outside counts. H and W are the image_size of the predictor's config. The last one is None if
    the training held no images out to set a threshold with. Raises UserError if a score is not
    finite.
    """
    return _score(predictor, images, _enough(len(images), batch_size), regions)


def _enough(num_images: int, batch_size: int) -> int:
    """A smaller batch size if that takes all images; a power of two, as each one is compiled."""
    return min(batch_size, 1 << (max(num_images, 1) - 1).bit_length())


def _score(
    predictor: Predictor, images: np.ndarray, batch_size: int, regions: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    parts = (predictor.scorer, *predictor.variables, images, batch_size)
    maps, scores = score_images(*parts, regions)
    threshold = predictor.calibration.image_threshold
    return maps, scores, None if threshold is None else scores > threshold


def score_files(
    predictor: Predictor,
    paths: Iterable[str | Path],
    batch_size: int = 16,
    hold_images: bool = False,
) -> Iterator[Prediction | Unreadable]:
    """Scores image files on all local devices; yields one result for each, in order.

    Files are decoded as for training, in parallel and a few batches ahead, and what was yielded
    is not held: any number of files takes the memory of a few batches. With `hold_images` a result
    has the decoded image, unless that is very large. Raises UserError if a score is not finite.

        predictor = load_predictor("runs/bottle")
        for result in score_files(predictor, sorted(Path("photos").glob("*.png"))):
            print(result.path, getattr(result, "score", "unreadable"))
    """
    notes: Notes = {}
    num_images, size, resize = 0, size_of(predictor.config), predictor.config.resize

    def read(path: Path) -> _Decoded:
        image = read_image(path, notes)
        is_held = hold_images and 3 * image.width * image.height <= _MOST_HELD
        return _Decoded(*placed(image, size, resize), np.asarray(image) if is_held else None)

    def decode(path: str | Path) -> tuple[Path, _Decoded | Unreadable]:
        return Path(path), attempt(read, Path(path))

    def scored(batch: list[_Decoded]) -> Iterator[tuple[float, bool | None, np.ndarray]]:
        if batch:
            images, regions = np.stack([d.pixels for d in batch]), [d.region for d in batch]
            where = np.array(regions, np.int32) if resize == "fit" else None
            maps, scores, anomalous = _score(predictor, images, batch_size, where)
            verdicts = repeat(None) if anomalous is None else anomalous.tolist()
            yield from zip(scores.tolist(), verdicts, map(cropped, maps, regions), strict=False)

    decoded = _in_parallel(decode, paths, _BATCHES_AHEAD * batch_size)
    while batch := list(islice(decoded, batch_size)):
        if not num_images:
            batch_size = _enough(len(batch), batch_size)
        num_images += len(batch)
        results = scored([found for _, found in batch if not isinstance(found, Unreadable)])
        for path, found in batch:
            if isinstance(found, Unreadable):
                yield found
            else:
                yield Prediction(path, *next(results), found.image)
    warn_of_dark_images(notes, num_images)


class _Decoded(NamedTuple):
    """An image file, ready to score."""

    pixels: np.ndarray  # [H, W, 3] uint8, of the config's image_size
    region: Region  # where in it the picture lies
    image: np.ndarray | None  # [h, w, 3] uint8, the picture itself, if it is held


def attempt(read: Callable[[Path], A], path: Path) -> A | Unreadable:
    """`read` of a file, or why it cannot be read."""
    try:
        return read(path)
    except Exception as error:  # decoders raise all kinds of errors for broken files
        return Unreadable(path, " ".join(str(error).split()) or type(error).__name__)


def _in_parallel(function: Callable[[A], B], items: Iterable[A], ahead: int) -> Iterator[B]:
    """`function` of each item, in order, in threads, at most `ahead` items early."""
    pool = ThreadPoolExecutor(num_processors())
    submitted = (pool.submit(function, item) for item in items)
    try:
        pending = deque(islice(submitted, ahead))
        while pending:
            pending.extend(islice(submitted, 1))
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
