"""Scores and anomaly maps of image files, one after the other, in constant memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import UnidentifiedImageError

from rd_jax import checkpoint
from rd_jax.calibration import Calibration
from rd_jax.config import Config
from rd_jax.data.images import decode_image
from rd_jax.errors import UserError
from rd_jax.evaluate import Scorer, make_scorer, score_images
from rd_jax.models.folding import fold_batch_norm
from rd_jax.resume import check_teacher
from rd_jax.weights import find_teacher

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


def find_training(workdir: Path) -> Path:
    """The folder of the one training in `workdir`, itself or a category's or seed's.

    Raises UserError if there is none, or several.
    """
    if (workdir / checkpoint.FOLDER).is_dir():
        return workdir
    found = checkpoint.trained_folders(workdir)
    if not found:
        raise UserError(f"no checkpoint in {workdir}: set --workdir to the folder of a training")
    if len(found) > 1:
        names = ", ".join(str(folder.relative_to(workdir)) for folder in found)
        raise UserError(f"{workdir} holds several trainings: add one of {names} to --workdir")
    return found[0]


def load_model(training: Path, teacher_weights: str | None = None) -> Model:
    """What the training in this folder learnt, on all local devices.

    `teacher_weights`, as of `load_teacher`, says where the teacher's weights are by now, if not
    where they were. Raises UserError if there is no checkpoint, if the training is not finished,
    or if the teacher is not the one trained with.
    """
    trained = checkpoint.load_trained(training)
    metadata = trained.metadata
    if metadata.get("calibration") is None:
        raise UserError(
            f"{training} has no calibration, after step {trained.step} of "
            f"{metadata['last_step']}: finish the training with the command that began it"
        )
    config = checkpoint.config_of(metadata)
    weights = teacher_weights or config.teacher_weights
    teacher = find_teacher(config.backbone, weights, layer4=config.bottleneck == "pre")
    check_teacher(teacher, metadata, training)
    mesh = Mesh(np.array(jax.local_devices()), ("batch",))
    teacher_variables, student_variables = jax.device_put(
        (teacher.variables, fold_batch_norm(trained.student_variables)),
        NamedSharding(mesh, PartitionSpec()),
    )
    calibration = Calibration(**metadata["calibration"])
    return Model(config, make_scorer(config), teacher_variables, student_variables, calibration)


def score_files(
    model: Model, paths: Iterable[Path], batch_size: int
) -> Iterator[Prediction | Unreadable]:
    """Scores image files on all local devices; yields one result for each, in order.

    Files are decoded as for training, in parallel and a few batches ahead, and what was yielded
    is not held: any number of files takes the memory of a few batches. Raises UserError if a
    score is not finite.

        model = load_model(find_training(Path("runs/bottle")))
        for result in score_files(model, sorted(Path("photos").glob("*.png")), batch_size=16):
            print(result.path, getattr(result, "score", "unreadable"))
    """

    def decode(path: Path) -> tuple[Path, np.ndarray | Unreadable]:
        return path, attempt(partial(decode_image, size=model.config.image_size), path)

    decoded = _in_parallel(decode, paths, _BATCHES_AHEAD * batch_size)
    while batch := list(islice(decoded, batch_size)):
        images = [image for _, image in batch if not isinstance(image, Unreadable)]
        results = iter(_scored(model, images, batch_size) if images else ())
        for path, image in batch:
            if isinstance(image, Unreadable):
                yield image
            else:
                anomaly_map, score = next(results)
                yield Prediction(path, float(score), anomaly_map)


def attempt(read: Callable[[Path], A], path: Path) -> A | Unreadable:
    """`read` of a file, or why it cannot be read."""
    try:
        return read(path)
    except UnidentifiedImageError:
        return Unreadable(path, "not an image")
    except Exception as error:  # decoders raise all kinds of errors for broken files
        return Unreadable(path, " ".join(str(error).split()) or type(error).__name__)


def _scored(
    model: Model, images: list[np.ndarray], batch_size: int
) -> Iterator[tuple[np.ndarray, float]]:
    """The map and score of each of at most `batch_size` images."""
    maps, scores = score_images(
        model.scorer,
        model.teacher_variables,
        model.student_variables,
        np.stack(images),
        batch_size,
    )
    if not np.isfinite(scores).all():
        raise UserError("scores are not finite: the training diverged; train anew elsewhere")
    return zip(maps, scores, strict=True)


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
