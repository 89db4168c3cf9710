"""Scoring any number of images on all devices."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rd_jax.method.models.batch_norm import fold_batch_norm
from rd_jax.run.loop import placement
from rd_jax.system import hosts
from rd_jax.system.errors import UserError

Program = Callable[..., tuple[jax.Array, ...]]  # of (teacher_variables, student_variables, images)


@dataclass(frozen=True)
class Scorer:
    """The two halves of `make_scorer`; what is between them is kept of normal images."""

    distances: Program  # [B, h, w] of each scale
    maps: Callable[[Any], tuple[jax.Array, jax.Array]]  # of these: maps, scores

    def __call__(self, *arguments: Any) -> tuple[jax.Array, jax.Array]:
        """(teacher_variables, student_variables, images) -> maps, scores."""
        return self.maps(self.distances(*arguments))


def compiled_distances(
    distances: Any,
    teacher_variables: Any,
    student_variables: Any,
    batch_size: int,
    size: tuple[int, int],
) -> Program:
    """`Scorer.distances` for `in_batches` with `batch_size` images [*size, 3], compiled.

    Of the variables {'params', 'batch_stats'} only the shapes count.
    """
    replicated, split = placement()
    variables = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
        (teacher_variables, jax.eval_shape(fold_batch_norm, student_variables)),
    )
    shape = (_divisible(batch_size), *size, 3)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=split)
    return distances.lower(*variables, images).compile()


def _divisible(batch_size: int) -> int:
    """The size of the batches that the devices compute, at least `batch_size`."""
    num_devices = jax.local_device_count()
    return -(-batch_size // num_devices) * num_devices


def on_devices(teacher_variables: Any, student_variables: Any) -> tuple[Any, Any]:
    """Both on all local devices, the student's in inference form, as `in_batches` needs them."""
    replicated, _ = placement()
    return jax.device_put((teacher_variables, fold_batch_norm(student_variables)), replicated)


def in_batches(
    program: Program,
    teacher_variables: Any,
    student_variables: Any,
    images: np.ndarray,
    batch_size: int,
    chosen: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """What `program` gives of uint8 images [N, H, W, 3], or those in `chosen`, on all devices.

    What the devices compute has one size, a multiple of their number: batches are padded, and the
    padding's results are dropped. Of several processes, each takes a share of the images, and all
    get all of the results. Raises UserError if one is not finite.
    """
    variables, (_, split) = on_devices(teacher_variables, student_variables), placement()
    chosen = np.arange(len(images)) if chosen is None else chosen
    count, chosen = len(chosen), chosen[hosts.share(len(chosen))]
    own: list[np.ndarray] = []

    def fetch(start: int, outputs: tuple[jax.Array, ...]) -> None:
        if not own:
            own.extend(np.empty((len(chosen), *x.shape[1:]), x.dtype) for x in outputs)
        for array, output in zip(own, outputs, strict=True):
            part = array[start : start + batch_size]
            part[:] = np.asarray(output)[: len(part)]

    waiting: deque[tuple[int, tuple[jax.Array, ...]]] = deque()
    for start in range(0, max(len(chosen), 1), batch_size):  # of none, too, the shapes are known
        batch = images[chosen[start : start + batch_size]]
        padding = _divisible(batch_size) - len(batch)
        padded = np.pad(batch, ((0, padding), (0, 0), (0, 0), (0, 0)))
        waiting.append((start, program(*variables, jax.device_put(padded, split))))
        if len(waiting) > 1:  # while one batch computes, the next one is sent
            fetch(*waiting.popleft())
    for start, outputs in waiting:
        fetch(start, outputs)
    found = tuple(hosts.gathered(array, count) for array in own)
    if not all(np.isfinite(array).all() for array in found):
        raise UserError("scores are not finite: the training diverged; train anew elsewhere")
    return found


def score_images(
    scorer: Program,
    teacher_variables: Any,
    student_variables: Any,
    images: np.ndarray,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Maps [N, H, W] and scores [N] of uint8 images [N, H, W, 3]: see `in_batches`."""
    maps, scores = in_batches(scorer, teacher_variables, student_variables, images, batch_size)
    return maps, scores
