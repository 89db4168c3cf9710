"""Score any number of images on all local devices, in float32."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np

from rd_jax.data import Split
from rd_jax.method.curve import Curve
from rd_jax.method.metrics import Scored, counted, no_pixels
from rd_jax.method.models.batch_norm import fold_batch_norm
from rd_jax.run.loop import placement
from rd_jax.system.errors import UserError

Score = Callable[[Any], tuple[jax.Array, jax.Array]]  # uint8 [B, H, W, 3] -> maps, scores

_MOST_BYTES = 2**28  # of maps that are held until the figures are known


def bound(scorer: Callable[..., Any], teacher_variables: Any, student_variables: Any) -> Score:
    """Bind the variables of `make_scorer`'s function; return a function of images only.

    The variables lie on all local devices, the student's folded. They stay arguments of the
    compiled program: constants would take minutes to compile.
    """
    replicated, _ = placement()
    variables = jax.device_put((teacher_variables, fold_batch_norm(student_variables)), replicated)
    return partial(scorer, *variables)


class Batch(NamedTuple):
    """Some scored images: their places among all, maps [B, H, W], scores [B]."""

    places: np.ndarray
    maps: np.ndarray
    scores: np.ndarray


def batches(
    score: Score, images: np.ndarray, batch_size: int, chosen: np.ndarray | None = None
) -> Iterator[Batch]:
    """Score uint8 images [N, H, W, 3], or those in `chosen`, batch by batch.

    All batches are padded to one size, a multiple of the number of devices. The padding's results
    are dropped. Raise UserError for a score that is not finite.
    """
    _, split = placement()
    chosen = np.arange(len(images)) if chosen is None else chosen
    num_devices = jax.local_device_count()
    padded_size = -(-batch_size // num_devices) * num_devices

    def sent(start: int) -> tuple[jax.Array, jax.Array]:
        batch = images[chosen[start : start + batch_size]]
        padded = np.pad(batch, [(0, padded_size - len(batch)), (0, 0), (0, 0), (0, 0)])
        return score(jax.device_put(padded, split))

    starts = range(0, len(chosen), batch_size)
    all_sent = map(sent, starts)
    ahead = list(islice(all_sent, 1))
    for start in starts:
        ahead += islice(all_sent, 1)  # while one batch computes, the next one is sent
        count = min(batch_size, len(chosen) - start)
        maps, scores = (np.asarray(output)[:count] for output in ahead.pop(0))
        if not (np.isfinite(scores).all() and np.isfinite(maps).all()):
            raise UserError("scores are not finite: the training diverged; use another --workdir")
        yield Batch(start + np.arange(count), maps, scores)


def score_images(
    score: Score, images: np.ndarray, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return maps [N, H, W] and scores [N] of uint8 images [N, H, W, 3]: see `batches`."""
    maps, scores = np.empty(images.shape[:3], np.float32), np.empty(len(images), np.float32)
    for batch in batches(score, images, batch_size):
        maps[batch.places], scores[batch.places] = batch.maps, batch.scores
    return maps, scores


def score_normal(
    score: Score, images: np.ndarray, batch_size: int, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Curve]:
    """Return scores [N], maxima of maps [N] and the pixels of all maps of the chosen images."""
    scores, maxima, pixels = np.empty(len(chosen)), np.empty(len(chosen)), no_pixels()
    for batch in batches(score, images, batch_size, chosen):
        scores[batch.places], maxima[batch.places] = batch.scores, batch.maps.max((1, 2))
        pixels = counted(pixels, batch.maps)
    return scores, maxima, pixels


MapsOf = Callable[[np.ndarray, Callable[[np.ndarray], np.ndarray]], list[np.ndarray]]


def score_split(score: Score, split: Split, batch_size: int) -> tuple[Scored, MapsOf]:
    """Score the test images; return the input of metrics, and a function over their maps.

    The function takes the places of images, and what to make of the map [H, W] of each. If the maps
    have more than `_MOST_BYTES`, they are not held, but computed again.
    """
    count, height, width, _ = split.test.shape
    is_held = 4 * count * height * width <= _MOST_BYTES
    held = np.empty((count if is_held else 0, height, width), np.float32)
    scores, sums, maxima = (np.empty(count, np.float32) for _ in range(3))
    pixels = no_pixels()
    for places, maps, of_images in batches(score, split.test, batch_size):
        scores[places] = of_images
        sums[places], maxima[places] = maps.sum((1, 2)), maps.max((1, 2))
        pixels = counted(pixels, maps, None if split.masks is None else split.masks[places])
        if is_held:
            held[places] = maps

    def maps_of(chosen: np.ndarray, make: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
        if is_held:
            return [make(held[i]) for i in chosen]
        again = batches(score, split.test, batch_size, chosen)
        return [make(of_image) for batch in again for of_image in batch.maps]

    return Scored(scores, sums, maxima, pixels), maps_of
