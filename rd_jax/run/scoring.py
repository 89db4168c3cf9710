"""Scoring any number of images on all devices."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rd_jax.method.models.folding import fold_batch_norm
from rd_jax.system import hosts
from rd_jax.system.errors import UserError

Scorer = Callable[[Any, Any, jax.Array], tuple[jax.Array, jax.Array]]


def compile_scorer(
    scorer: jax.stages.Wrapped,
    teacher_variables: Any,
    student_variables: Any,
    num_images: int,
    size: int,
) -> Scorer:
    """`scorer` for `score_images` with batches of `num_images` of `size` pixels.

    Of the variables {'params', 'batch_stats'} only the shapes count.
    """
    replicated, split, num_images = _placement(num_images)
    student_variables = jax.eval_shape(fold_batch_norm, student_variables)
    teacher_variables, student_variables = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
        (teacher_variables, student_variables),
    )
    images = jax.ShapeDtypeStruct((num_images, size, size, 3), jnp.uint8, sharding=split)
    return scorer.lower(teacher_variables, student_variables, images).compile()


def _placement(batch_size: int) -> tuple[NamedSharding, NamedSharding, int]:
    """What is on all local devices, what is split over them, and a size that they divide."""
    mesh = Mesh(np.array(jax.local_devices()), ("batch",))
    replicated, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("batch",)))
    return replicated, split, math.ceil(batch_size / mesh.size) * mesh.size


def on_devices(teacher_variables: Any, student_variables: Any) -> tuple[Any, Any]:
    """Both on all local devices, the student's in inference form, as `score_batches` needs them."""
    replicated, _, _ = _placement(1)
    return jax.device_put((teacher_variables, fold_batch_norm(student_variables)), replicated)


def score_batches(
    scorer: Scorer,
    teacher_variables: Any,
    student_variables: Any,
    batches: Iterable[np.ndarray],
    batch_size: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Maps [b, H, W] and scores [b] of each batch of uint8 images [b, H, W, 3], on all devices.

    Every b is at most `batch_size`. What the devices compute has one size, a multiple of their
    number: batches are padded, and the padding's results are dropped. While one batch computes,
    the next one is fetched.
    """
    teacher_variables, student_variables = on_devices(teacher_variables, student_variables)
    _, split, batch_size = _placement(batch_size)
    waiting: tuple[int, tuple[jax.Array, jax.Array]] | None = None
    for batch in batches:
        padded = np.pad(batch, ((0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0)))
        outputs = scorer(teacher_variables, student_variables, jax.device_put(padded, split))
        if waiting is not None:
            yield _first(*waiting)
        waiting = (len(batch), outputs)
    if waiting is not None:
        yield _first(*waiting)


def _first(count: int, arrays: tuple[jax.Array, jax.Array]) -> tuple[np.ndarray, np.ndarray]:
    maps, scores = (np.asarray(array)[:count] for array in arrays)
    return maps, scores


def score_images(
    scorer: Scorer,
    teacher_variables: Any,
    student_variables: Any,
    images: np.ndarray,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Maps [N, H, W] and scores [N] of uint8 images [N, H, W, 3], for any N: `score_batches`.

    Of several processes, each scores a share of the images, and all get all of the results.
    Raises UserError if a score is not finite.
    """
    size, count = images.shape[1], len(images)
    images = images[hosts.share(count)]
    own_maps = np.empty((len(images), size, size), np.float32)
    own_scores = np.empty(len(images), np.float32)
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    scored = score_batches(scorer, teacher_variables, student_variables, batches, batch_size)
    start = 0
    for maps, scores in scored:
        own_maps[start : start + len(maps)] = maps
        own_scores[start : start + len(maps)] = scores
        start += len(maps)
    all_maps, all_scores = hosts.gathered(own_maps, count), hosts.gathered(own_scores, count)
    if not np.isfinite(all_scores).all():
        raise UserError("scores are not finite: the training diverged; train anew elsewhere")
    return all_maps, all_scores
