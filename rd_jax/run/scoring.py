"""Scoring any number of images on all devices."""

from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rd_jax.method.models.batch_norm import fold_batch_norm
from rd_jax.run.loop import placement
from rd_jax.system import hosts
from rd_jax.system.errors import UserError

Scorer = Callable[[Any, Any, jax.Array], tuple[jax.Array, jax.Array]]


def compile_scorer(
    scorer: jax.stages.Wrapped,
    teacher_variables: Any,
    student_variables: Any,
    batch_size: int,
    size: int,
) -> Scorer:
    """`scorer` for `score_images` with batches of `batch_size` images of `size` pixels.

    Of the variables {'params', 'batch_stats'} only the shapes count.
    """
    replicated, split = placement()
    variables = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
        (teacher_variables, jax.eval_shape(fold_batch_norm, student_variables)),
    )
    shape = (_divisible(batch_size), size, size, 3)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=split)
    return scorer.lower(*variables, images).compile()


def _divisible(batch_size: int) -> int:
    """The size of the batches that the devices compute, at least `batch_size`."""
    num_devices = jax.local_device_count()
    return -(-batch_size // num_devices) * num_devices


def on_devices(teacher_variables: Any, student_variables: Any) -> tuple[Any, Any]:
    """Both on all local devices, the student's in inference form, as `score_images` needs them."""
    replicated, _ = placement()
    return jax.device_put((teacher_variables, fold_batch_norm(student_variables)), replicated)


def score_images(
    scorer: Scorer,
    teacher_variables: Any,
    student_variables: Any,
    images: np.ndarray,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Maps [N, H, W] and scores [N] of uint8 images [N, H, W, 3], for any N, on all devices.

    What the devices compute has one size, a multiple of their number: batches are padded, and the
    padding's results are dropped. Of several processes, each scores a share of the images, and
    all get all of the results. Raises UserError if a score is not finite.
    """
    variables, (_, split) = on_devices(teacher_variables, student_variables), placement()
    size, count = images.shape[1], len(images)
    images = images[hosts.share(count)]
    own_maps = np.empty((len(images), size, size), np.float32)
    own_scores = np.empty(len(images), np.float32)

    def fetch(start: int, outputs: tuple[jax.Array, jax.Array]) -> None:
        for own, output in zip((own_maps, own_scores), outputs, strict=True):
            part = own[start : start + batch_size]
            part[:] = np.asarray(output)[: len(part)]

    waiting: deque[tuple[int, tuple[jax.Array, jax.Array]]] = deque()
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        padding = _divisible(batch_size) - len(batch)
        padded = np.pad(batch, ((0, padding), (0, 0), (0, 0), (0, 0)))
        waiting.append((start, scorer(*variables, jax.device_put(padded, split))))
        if len(waiting) > 1:  # while one batch computes, the next one is sent
            fetch(*waiting.popleft())
    for start, outputs in waiting:
        fetch(start, outputs)
    all_maps, all_scores = hosts.gathered(own_maps, count), hosts.gathered(own_scores, count)
    if not np.isfinite(all_scores).all():
        raise UserError("scores are not finite: the training diverged; train anew elsewhere")
    return all_maps, all_scores
