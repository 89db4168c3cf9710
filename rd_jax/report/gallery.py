"""The test images that are worth a look, kept with scores and curves as a file for the page."""

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
from rd_jax.report.heatmap import overlay, resized_map
from rd_jax.store.rows import read_arrays, write_arrays

logger = logging.getLogger(__name__)

_MAX_SHOWN = 120
_NUM_EXAMPLES = 8  # of defects
_MAX_SIZE = 192  # pixels
_MAX_POINTS = 300


class Evaluated(NamedTuple):
    """Scores of M test images, curves [., 2] (none where undefined), and G images to look at."""

    names: np.ndarray  # [M] str
    labels: np.ndarray  # [M] bool, true: anomalous
    scores: np.ndarray  # [M] float32
    image_roc: np.ndarray
    pixel_roc: np.ndarray
    pro: np.ndarray  # per-region overlap, to a false-positive rate of MAX_FPR
    map_range: np.ndarray  # [2] values of the map shown as calm and at full strength
    shown: np.ndarray  # [G] which of the M images
    size: np.ndarray  # [2] height and width of the pictures
    images: np.ndarray  # [G] JPEG files
    heatmaps: np.ndarray  # [G] JPEG files: the images under their maps
    masks: np.ndarray  # [G] PNG files, or [0] without masks


def read_evaluation(path: Path) -> Evaluated | None:
    """Return what `write_evaluation` wrote; None without a file or, with a warning, a whole one."""
    arrays = read_arrays(path)
    if arrays and arrays.keys() != {*Evaluated._fields}:
        logger.warning("%s is left out, since it is of another version", path)
        return None
    return Evaluated(**arrays) if arrays else None


def write_evaluation(
    path: Path,
    split: Split,
    scored: Scored,
    shown: np.ndarray,
    maps: Sequence[np.ndarray],
    thresholds: Thresholds | None,
) -> None:
    """Write an .npz file, whole or not at all.

    `scored` are the split's M test images, `shown` those that `chosen` chose, and `maps` what
    `small_map` made of their maps. Without thresholds, colours reach from the median to the maximum
    of all maps.
    """
    low, high = median(scored.pixels), scored.maxima.max(initial=0.0)
    if thresholds:
        low, high = thresholds.map_low, thresholds.map_high
    size = _thumbnail(*split.test.shape[1:3])
    images = [resized(Image.fromarray(split.test[i]), size) for i in shown]
    threshold = thresholds.image_threshold if thresholds else None
    called = scored.scores > (np.inf if threshold is None else threshold)
    heatmaps = [
        overlay(image, of_image, low, high, bool(called[i]))
        for image, of_image, i in zip(images, maps, shown, strict=True)
    ]
    all_masks = () if split.masks is None else split.masks[shown]
    masks = [resized_map(255 * mask.astype(np.uint8), size).astype(np.uint8) for mask in all_masks]
    evaluated = Evaluated(
        names=np.array(split.test_names, str),
        labels=split.labels,
        scores=scored.scores,
        image_roc=thinned(curve_points(image_curve(scored.scores, split.labels))),
        pixel_roc=thinned(curve_points(scored.pixels.unweighted())),
        pro=thinned(curve_points(scored.pixels, MAX_FPR)),
        map_range=np.array([low, high]),
        shown=shown,
        size=np.array(size),
        # Neither kind of file ends with a NUL, which NumPy would drop.
        images=np.array([*map(jpeg, images)], bytes),
        heatmaps=np.array([*map(jpeg, heatmaps)], bytes),
        masks=np.array([*map(png, masks)], bytes),
    )
    write_arrays(path, evaluated._asdict())


def small_map(anomaly_map: np.ndarray) -> np.ndarray:
    """Return a map [H, W] at the size at which it is shown."""
    return resized_map(anomaly_map, _thumbnail(*anomaly_map.shape))


def _thumbnail(height: int, width: int) -> tuple[int, int]:
    """Return height and width of what is shown, in the same ratio as far as pixels allow."""
    scale = min(1.0, _MAX_SIZE / max(height, width))
    return max(1, round(scale * height)), max(1, round(scale * width))


def chosen(split: Split, scores: np.ndarray, thresholds: Thresholds | None) -> np.ndarray:
    """Return which of the split's M test images with scores [M] to keep: errors, and examples."""
    errors = wrongness(scores, split.labels, thresholds)
    clear = examples(split.test_names, split.labels, scores, errors)
    return np.array([*dict.fromkeys([*informative(errors, _MAX_SHOWN), *clear])], int)


def wrongness(scores: np.ndarray, labels: np.ndarray, thresholds: Thresholds | None) -> np.ndarray:
    """Return how far each score [M] lies on the wrong side of the threshold; negative: right.

    Without a threshold, as many images are called anomalous as there are by these labels [M].
    """
    threshold = np.sort(scores)[-labels.sum() :][:1]
    if thresholds and thresholds.image_threshold is not None:
        threshold = np.array([thresholds.image_threshold])
    return np.where(labels, threshold - scores, scores - threshold)


def informative(wrongness: np.ndarray, limit: int) -> np.ndarray:
    """Return which images to show, at most `limit`, worst first.

    If there are more, half of them are the worst, the others evenly spaced from there to the best.
    """
    worst_first = np.argsort(-wrongness, kind="stable")
    half = limit // 2
    spaced = np.linspace(half, len(wrongness) - 1, limit - half).astype(int)
    return worst_first if len(wrongness) <= limit else worst_first[np.r_[:half, spaced]]


def examples(
    names: Sequence[str], labels: np.ndarray, scores: np.ndarray, wrongness: np.ndarray
) -> list[int]:
    """Return which images show best what was found: a few on the right side of the threshold.

    They are a normal image of middling score, and the highest scores of the kinds of defects, which
    are folders in `names`, in turn.
    """
    right = [int(i) for i in np.argsort(-scores, kind="stable") if wrongness[i] <= 0]
    normal = [i for i in right if not labels[i]]
    by_kind: dict[str, list[int]] = {}
    for i in right:
        if labels[i]:
            by_kind.setdefault(names[i].split("/")[0], []).append(i)
    in_turn = [i for i in chain(*zip_longest(*by_kind.values())) if i is not None]
    return normal[(len(normal) - 1) // 2 :][:1] + in_turn[: max(_NUM_EXAMPLES, len(by_kind))]


def thinned(points: np.ndarray) -> np.ndarray:
    """Return some 300 of the points [K, 2] of a rising curve, evenly spaced along it."""
    if len(points) <= _MAX_POINTS:
        return points
    way = points.sum(1)  # both rates only rise
    return points[np.unique(np.searchsorted(way, np.linspace(0, way[-1], _MAX_POINTS)))]
