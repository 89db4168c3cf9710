"""Scores and anomaly maps of image files, one after the other, in constant memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import UnidentifiedImageError

from rd_jax.calibration import Calibration
from rd_jax.config import Config, compute_dtype
from rd_jax.data.images import decode_image
from rd_jax.errors import UserError
from rd_jax.evaluate import Scorer, make_scorer, on_devices, score_images
from rd_jax.trained import load_trained, warn_of_other_dtype

A = TypeVar("A")
B = TypeVar("B")
_BATCHES_AHEAD = 2  # decoded while one is scored


class Model(NamedTuple):
    """A trained category, ready to score."""

    config: Config
    scorer: Scorer
    teacher_variables: Any
    student_variables: Any
    calibration: Calibration


class Prediction(NamedTuple):
    """What one image scored."""

    path: Path
    score: float
    anomaly_map: np.ndarray  # [size, size] float32, size of config.image_size


class Unreadable(NamedTuple):
    """An image file that could not be decoded, and why, in one line."""

    path: Path
    reason: str


def load_model(training: Path, teacher_weights: str | None = None) -> Model:
    """What the training in this folder learnt, on all local devices.

    `teacher_weights`, as of `load_teacher`, says where the teacher's weights are by now, if not
    where they were. Raises UserError if there is no checkpoint, if the training is not finished,
    or if the teacher is not the one trained with.
    """
    trained = load_trained(training, teacher_weights)
    if trained.calibration is None:
        raise UserError(
            f"{training} has no calibration, after step {trained.checkpoint.step} of "
            f"{trained.checkpoint.metadata['last_step']}: finish the training with the command "
            "that began it"
        )
    config, student_variables = trained.config, trained.checkpoint.student_variables
    warn_of_other_dtype(trained, compute_dtype(config))
    variables = on_devices(trained.teacher.variables, student_variables)
    return Model(config, make_scorer(config), *variables, trained.calibration)


def score_files(
    model: Model, paths: Iterable[Path], batch_size: int
) -> Iterator[Prediction | Unreadable]:
    """Scores image files on all local devices; yields one result for each, in order.

    Files are decoded as for training, in parallel and a few batches ahead, and what was yielded
    is not held: any number of files takes the memory of a few batches. Raises UserError if a
    score is not finite.

        model = load_model(Path("runs/bottle/bottle"))
        for result in score_files(model, sorted(Path("photos").glob("*.png")), batch_size=16):
            print(result.path, getattr(result, "score", "unreadable"))
    """

    def decode(path: Path) -> tuple[Path, np.ndarray | Unreadable]:
        return path, attempt(partial(decode_image, size=model.config.image_size), path)

    def score(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        variables = model.teacher_variables, model.student_variables
        return score_images(model.scorer, *variables, images, batch_size)

    decoded = _in_parallel(decode, paths, _BATCHES_AHEAD * batch_size)
    while batch := list(islice(decoded, batch_size)):
        images = [image for _, image in batch if not isinstance(image, Unreadable)]
        results = zip(*score(np.stack(images)), strict=True) if images else iter(())
        for path, image in batch:
            if isinstance(image, Unreadable):
                yield image
            else:
                anomaly_map, image_score = next(results)
                yield Prediction(path, float(image_score), anomaly_map)


def attempt(read: Callable[[Path], A], path: Path) -> A | Unreadable:
    """`read` of a file, or why it cannot be read."""
    try:
        return read(path)
    except UnidentifiedImageError:
        return Unreadable(path, "not an image")
    except Exception as error:  # decoders raise all kinds of errors for broken files
        return Unreadable(path, " ".join(str(error).split()) or type(error).__name__)


def _in_parallel(function: Callable[[A], B], items: Iterable[A], ahead: int) -> Iterator[B]:
    """`function` of each item, in order, in threads, at most `ahead` items early."""
    pool = ThreadPoolExecutor(os.cpu_count())
    pending: deque[Future[B]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
