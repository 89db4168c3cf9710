"""Scoring any number of images on all devices."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rd_jax.data import Split
from rd_jax.method.counts import counted, no_pixels
from rd_jax.method.metrics import Scored, sums_and_maxima
from rd_jax.method.models.batch_norm import fold_batch_norm
from rd_jax.run.loop import placement
from rd_jax.system import hosts
from rd_jax.system.errors import UserError

Program = Callable[..., tuple[jax.Array, ...]]  # of both variables, images, ...

_MOST_BYTES = 2**28  # of maps that are held until the figures are known


@dataclass(frozen=True)
class Scorer:
    """The two halves of `make_scorer`; what is between them is kept of normal images."""

    distances: Program  # [B, h, w] of each scale
    maps: Callable[..., tuple[jax.Array, jax.Array]]  # of these and regions: maps, scores

    def __call__(
        self, teacher_variables: Any, student_variables: Any, images: Any, *regions: Any
    ) -> tuple[jax.Array, jax.Array]:
        """With regions, int [B, 4], maps are 0 outside, where no picture is: see `make_maps`."""
        return self.maps(self.distances(teacher_variables, student_variables, images), *regions)


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


def batches(
    program: Program,
    teacher_variables: Any,
    student_variables: Any,
    images: np.ndarray,
    batch_size: int,
    chosen: np.ndarray | None = None,
    regions: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """What `program` gives of uint8 images [N, H, W, 3], or those in `chosen`, on all devices.

    Of their `regions` [N, 4], too, if there are any. Yields places in `chosen` and outputs, batch
    by batch. What the devices compute has one size, a multiple of their number: batches are padded,
    and the padding's results are dropped. Of several processes, each computes a share, and all get
    all. Raises UserError for what is not finite.
    """
    variables, (_, split) = on_devices(teacher_variables, student_variables), placement()
    chosen = np.arange(len(images)) if chosen is None else chosen
    per_process = -(-len(chosen) // jax.process_count())
    own = chosen[hosts.share(len(chosen))]

    def fetch(start: int, outputs: tuple[jax.Array, ...]) -> tuple[np.ndarray, list[np.ndarray]]:
        in_share = start + np.arange(batch_size)
        places = (per_process * np.arange(jax.process_count())[:, None] + in_share).ravel()
        there = (np.tile(in_share, jax.process_count()) < per_process) & (places < len(chosen))
        of_all = [
            hosts.gathered(np.asarray(x)[:batch_size], jax.process_count() * batch_size)[there]
            for x in outputs
        ]
        if not all(np.isfinite(array).all() for array in of_all):
            raise UserError("scores are not finite: the training diverged; train anew elsewhere")
        return places[there], of_all

    waiting: deque[tuple[int, tuple[jax.Array, ...]]] = deque()
    for start in range(0, max(per_process, 1), batch_size):  # of none, too, the shapes are known
        now = own[start : start + batch_size]
        seen = [array[now] for array in (images, regions) if array is not None]
        rows = _divisible(batch_size) - len(now)
        padded = [np.pad(x, [(0, rows), *[(0, 0)] * (x.ndim - 1)]) for x in seen]
        waiting.append((start, program(*variables, *jax.device_put(padded, split))))
        if len(waiting) > 1:  # while one batch computes, the next one is sent
            yield fetch(*waiting.popleft())
    for start, outputs in waiting:
        yield fetch(start, outputs)


def in_batches(
    program: Program,
    teacher_variables: Any,
    student_variables: Any,
    images: np.ndarray,
    batch_size: int,
    chosen: np.ndarray | None = None,
    regions: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """All that `batches` yields, in the order of `chosen`."""
    count = len(images if chosen is None else chosen)
    found: list[np.ndarray] = []
    for places, outputs in batches(
        program, teacher_variables, student_variables, images, batch_size, chosen, regions
    ):
        found = found or [np.empty((count, *x.shape[1:]), x.dtype) for x in outputs]
        for array, output in zip(found, outputs, strict=True):
            array[places] = output
    return tuple(found)


def score_images(
    scorer: Program,
    teacher_variables: Any,
    student_variables: Any,
    images: np.ndarray,
    batch_size: int,
    regions: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Maps [N, H, W] and scores [N] of uint8 images [N, H, W, 3]: see `batches`."""
    variables = teacher_variables, student_variables
    maps, scores = in_batches(scorer, *variables, images, batch_size, None, regions)
    return maps, scores


def score_split(
    scorer: Program,
    teacher_variables: Any,
    student_variables: Any,
    split: Split,
    batch_size: int,
) -> tuple[Scored, Callable[[np.ndarray, Callable[[np.ndarray], np.ndarray]], list[np.ndarray]]]:
    """What metrics need of the test images, and a function that gives what is made of their maps.

    It takes which images, and what to make of the map [H, W] of each. Maps are not held beyond
    `_MOST_BYTES`: they are then computed again. Of several processes all call both functions.
    """
    variables, where = (teacher_variables, student_variables), split.test_regions
    count, height, width, _ = split.test.shape
    is_held = 4 * count * height * width <= _MOST_BYTES
    held = np.empty((count if is_held else 0, height, width), np.float32)
    scores, sums, maxima = (np.empty(count, np.float32) for _ in range(3))
    pixels = no_pixels()
    for places, (maps, of_images) in batches(
        scorer, *variables, split.test, batch_size, None, where
    ):
        scores[places] = of_images
        sums[places], maxima[places] = sums_and_maxima(maps)
        masks = np.zeros(maps.shape, bool) if split.masks is None else split.masks[places]
        pixels = counted(pixels, maps, masks, None if where is None else where[places])
        if is_held:
            held[places] = maps

    def made_of_maps(
        chosen: np.ndarray, make: Callable[[np.ndarray], np.ndarray]
    ) -> list[np.ndarray]:
        if is_held:
            return [make(held[i]) for i in chosen]
        made: dict[int, np.ndarray] = {}
        again = batches(scorer, *variables, split.test, batch_size, chosen, where)
        for places, (maps, _) in again:
            made |= {place: make(of) for place, of in zip(places.tolist(), maps, strict=True)}
        return [made[place] for place in range(len(chosen))]

    return Scored(scores, sums, maxima, pixels), made_of_maps
