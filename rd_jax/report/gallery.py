"""Choose images for the page, and keep them with scores and curves in a file."""

import logging
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from rd_jax.data import Split
from rd_jax.data.decode import jpeg, png, resized
from rd_jax.method.curve import curve_points, image_curve
from rd_jax.method.metrics import MAX_FPR, Scored, median
from rd_jax.method.thresholds import Thresholds
from rd_jax.report.heatmap import resized_map
from rd_jax.store.rows import read_arrays, write_arrays

logger = logging.getLogger(__name__)

_MAX_SHOWN = 120
_NUM_EXAMPLES = 8  # of defects
_MAX_SIZE = 256  # pixels
_MAX_POINTS = 300


class Shown(NamedTuple):
    """Images of a split to look at: their places in it, scores, and maps by `small_map`."""

    places: np.ndarray
    scores: np.ndarray
    maps: Sequence[np.ndarray]


class Evaluated(NamedTuple):
    """Scores of M test images, curves [., 2] (none where undefined), and G images to look at.

    It also keeps the H held-out images with the highest scores.
    """

    names: np.ndarray  # [M] str
    labels: np.ndarray  # [M] bool, true: anomalous
    scores: np.ndarray  # [M] float32
    image_roc: np.ndarray
    pixel_roc: np.ndarray
    pro: np.ndarray  # per-region overlap, to a false-positive rate of MAX_FPR
    map_range: np.ndarray  # [2] median and maximum of all maps
    shown: np.ndarray  # [G] their places among the M images
    size: np.ndarray  # [2] height and width of the pictures
    images: np.ndarray  # [G] JPEG files
    maps: np.ndarray  # [G, height, width] uint16, in units of `map_unit`
    masks: np.ndarray  # [G] PNG files, or [0] without masks
    held_out_names: np.ndarray  # [H] str
    held_out_scores: np.ndarray  # [H] float32
    held_out_images: np.ndarray  # [H] JPEG files
    held_out_maps: np.ndarray  # [H, height, width] uint16
    map_unit: np.ndarray  # [] 1/4095 of the highest value of these maps


def read_evaluation(path: Path) -> Evaluated | None:
    """Read the file of `write_evaluation`; None without it or, with a warning, if it is damaged."""
    arrays = read_arrays(path)
    if arrays and arrays.keys() != {*Evaluated._fields}:
        logger.warning("%s is left out, since it is of another version", path)
        return None
    return Evaluated(**arrays) if arrays else None


def write_evaluation(
    path: Path, split: Split, scored: Scored, shown: Shown, held_out: Shown
) -> None:
    """Write an .npz file, whole or not at all.

    `scored` are the split's M test images, `shown` those from `chosen`. `held_out` are some of its
    training images.
    """
    size = _thumbnail(*split.test.shape[1:3])
    maps = np.array([*shown.maps, *held_out.maps], np.float32).reshape(-1, *size)
    unit = np.array(max(maps.max(initial=0), 1e-6) / 4095, np.float32)
    levels = np.rint(maps.clip(0) / unit).astype(np.uint16)

    def pictures(of: np.ndarray, chosen: Shown) -> np.ndarray:
        # No JPEG file ends with a NUL, which NumPy would drop.
        return np.array([jpeg(resized(Image.fromarray(of[i]), size)) for i in chosen.places], bytes)

    all_masks = () if split.masks is None else split.masks[shown.places]
    masks = [np.rint(resized_map(255 * mask, size)).astype(np.uint8) for mask in all_masks]
    evaluated = Evaluated(
        names=np.array(split.test_names, str),
        labels=split.labels,
        scores=scored.scores,
        image_roc=thinned(curve_points(image_curve(scored.scores, split.labels))),
        pixel_roc=thinned(curve_points(scored.pixels.unweighted())),
        pro=thinned(curve_points(scored.pixels, MAX_FPR)),
        map_range=np.array([median(scored.pixels), scored.maxima.max(initial=0.0)]),
        shown=shown.places,
        size=np.array(size),
        images=pictures(split.test, shown),
        maps=levels[: len(shown.maps)],
        masks=np.array([*map(png, masks)], bytes),
        held_out_names=np.array([split.train_names[i] for i in held_out.places], str),
        held_out_scores=held_out.scores,
        held_out_images=pictures(split.train, held_out),
        held_out_maps=levels[len(shown.maps) :],
        map_unit=unit,
    )
    write_arrays(path, evaluated._asdict())


def small_map(anomaly_map: np.ndarray) -> np.ndarray:
    """Return a map [H, W] in the size in which it is shown."""
    return resized_map(anomaly_map, _thumbnail(*anomaly_map.shape))


def _thumbnail(height: int, width: int) -> tuple[int, int]:
    """Return the height and width of a shown picture, with nearly the same ratio."""
    scale = min(1.0, _MAX_SIZE / max(height, width))
    return max(1, round(scale * height)), max(1, round(scale * width))


def chosen(split: Split, scores: np.ndarray, thresholds: Thresholds | None) -> np.ndarray:
    """Return which of M test images, with scores [M], to keep: the worst errors, and examples."""
    errors = wrongness(scores, split.labels, thresholds)
    clear = examples(split.test_names, split.labels, scores, errors)
    return np.array([*dict.fromkeys([*informative(errors, _MAX_SHOWN), *clear])], int)


def wrongness(scores: np.ndarray, labels: np.ndarray, thresholds: Thresholds | None) -> np.ndarray:
    """Return how far each score [M] is on the wrong side of the threshold; negative: right side.

    Without a threshold, take the one that calls as many images anomalous as the labels [M] do.
    """
    threshold = np.sort(scores)[-labels.sum() :][:1]
    if thresholds and thresholds.image_threshold is not None:
        threshold = np.array([thresholds.image_threshold])
    return np.where(labels, threshold - scores, scores - threshold)


def informative(wrongness: np.ndarray, limit: int) -> np.ndarray:
    """Return which images to show, at most `limit`, worst first.

    If there are more images, half of the chosen ones are the worst. The others are evenly spaced
    from there to the best.
    """
    worst_first = np.argsort(-wrongness, kind="stable")
    half = limit // 2
    spaced = np.linspace(half, len(wrongness) - 1, limit - half).astype(int)
    return worst_first if len(wrongness) <= limit else worst_first[np.r_[:half, spaced]]


def examples(
    names: Sequence[str], labels: np.ndarray, scores: np.ndarray, wrongness: np.ndarray
) -> list[int]:
    """Return which images are the clearest examples.

    They are the normal images with the median and the highest score, then found defects with the
    highest scores. Kinds of defects, the folders in `names`, take turns.
    """
    highest_first = np.argsort(-scores, kind="stable").tolist()
    normal = [i for i in highest_first if not labels[i]]
    by_kind: dict[str, list[int]] = {}
    for i in highest_first:
        if labels[i] and wrongness[i] <= 0:
            by_kind.setdefault(names[i].split("/")[0], []).append(i)
    in_turn = [i for i in chain(*zip_longest(*by_kind.values())) if i is not None]
    of_normal = normal[len(normal) // 2 :][:1] + normal[:1]
    return [*dict.fromkeys(of_normal), *in_turn[: max(_NUM_EXAMPLES, len(by_kind))]]


def thinned(points: np.ndarray) -> np.ndarray:
    """Return at most 300 of the points [K, 2] of a rising curve, evenly spaced along it."""
    if len(points) <= _MAX_POINTS:
        return points
    way = points.sum(1)  # both coordinates only rise
    return points[np.unique(np.searchsorted(way, np.linspace(0, way[-1], _MAX_POINTS)))]
