"""The test images that are worth a look, kept with scores and curves as a file for the page."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from rd_jax.data import Split
from rd_jax.data.decode import resized
from rd_jax.method.curve import curve_points, image_curve, up_to
from rd_jax.method.metrics import MAX_FPR, Scored, median, pixel_curve, region_curve
from rd_jax.method.thresholds import Thresholds
from rd_jax.report.heatmap import coloured, resized_map, strength
from rd_jax.store.rows import read_arrays, write_arrays

logger = logging.getLogger(__name__)

_MAX_SHOWN = 120
_NUM_EXAMPLES = 8  # about
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
    if not arrays:
        return None
    try:
        return Evaluated(**arrays)
    except TypeError as error:
        logger.warning("%s is left out, since it is of another version (%s)", path, error)
        return None


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
    low, high = 0.0, 1.0
    if thresholds:
        low, high = thresholds.map_low, thresholds.map_high
    elif len(scored.scores):
        low, high = median(scored.pixels), float(scored.maxima.max())
    size = _thumbnail(*split.test.shape[1:3])
    images = [resized(Image.fromarray(split.test[i]), size) for i in shown]
    heatmaps = [
        coloured(image, strength(anomaly_map, low, high))
        for image, anomaly_map in zip(images, maps, strict=True)
    ]
    all_masks = () if split.masks is None else split.masks[shown]
    masks = [resized_map(255 * mask.astype(np.uint8), size) for mask in all_masks]
    evaluated = Evaluated(
        names=np.array(split.test_names, str),
        labels=split.labels,
        scores=scored.scores,
        image_roc=thinned(curve_points(image_curve(scored.scores, split.labels)), _MAX_POINTS),
        pixel_roc=thinned(curve_points(pixel_curve(scored.pixels)), _MAX_POINTS),
        pro=thinned(up_to(curve_points(region_curve(scored.pixels)), MAX_FPR), _MAX_POINTS),
        map_range=np.array([low, high]),
        shown=shown,
        size=np.array(size),
        # Neither kind of file ends with a NUL, which NumPy would drop.
        images=np.array([_file(image, "JPEG") for image in images], bytes),
        heatmaps=np.array([_file(heatmap, "JPEG") for heatmap in heatmaps], bytes),
        masks=np.array([_file(mask.astype(np.uint8), "PNG") for mask in masks], bytes),
    )
    write_arrays(path, evaluated._asdict())


def _file(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=85)  # which a PNG has not
    return file.getvalue()


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
    shown = informative(errors, scores, _MAX_SHOWN)
    return np.concatenate([shown, clear[~np.isin(clear, shown)]])


def wrongness(scores: np.ndarray, labels: np.ndarray, thresholds: Thresholds | None) -> np.ndarray:
    """Return how far each score [M] lies on the wrong side of the threshold; negative: right.

    Without a threshold, take the one with the best F1 on these labels [M].
    """
    threshold = thresholds.image_threshold if thresholds else None
    if threshold is None:
        threshold = _best_f1_threshold(scores, labels)
    return np.where(labels, threshold - scores, scores - threshold)


def _best_f1_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    if not labels.any():
        return 0.0
    curve = image_curve(scores, labels)
    hits, false_alarms = (np.cumsum(x[::-1])[::-1] for x in (curve.anomalous, curve.normal))
    f1 = 2 * hits / (hits + false_alarms + hits[0])
    return float(np.unique(scores)[f1.argmax()])


def informative(wrongness: np.ndarray, scores: np.ndarray, limit: int) -> np.ndarray:
    """Return which images to show, at most `limit`, worst first.

    If there are more, half of them are the worst, the others evenly spaced by score.
    """
    worst_first = np.argsort(-wrongness, kind="stable")
    if len(scores) <= limit:
        return worst_first
    worst, rest = np.split(worst_first, [limit // 2])
    by_score = rest[np.argsort(scores[rest], kind="stable")]
    spaced = by_score[np.linspace(0, len(rest) - 1, limit - len(worst)).round().astype(int)]
    return np.concatenate([worst, rest[np.isin(rest, spaced)]])


def kind_of(name: str) -> str:
    """Return the kind of defect: the first folder in the name of a test image, or nothing."""
    return name.partition("/")[0] if "/" in name else ""


def examples(
    names: Sequence[str], labels: np.ndarray, scores: np.ndarray, wrongness: np.ndarray
) -> np.ndarray:
    """Return which images show best what was found: a few on the right side of the threshold.

    They are a normal image of middling score, and of each kind of defect the highest scores.
    """
    right = np.flatnonzero(wrongness <= 0)
    right = right[np.argsort(-scores[right], kind="stable")]
    normal, defective = right[~labels[right]], right[labels[right]]
    kinds = np.array([kind_of(names[i]) for i in defective], str)
    of_each = max(1, _NUM_EXAMPLES // max(1, len(np.unique(kinds))))
    clear = [defective[kinds == kind][:of_each] for kind in np.unique(kinds)]
    one_of_each_first = [of_kind[i : i + 1] for i in range(of_each) for of_kind in clear]
    return np.concatenate([normal[(len(normal) - 1) // 2 :][:1], *one_of_each_first])


def thinned(points: np.ndarray, num_points: int) -> np.ndarray:
    """Return at most so many of the points [K, 2] of a rising curve, evenly spaced along it."""
    if len(points) <= num_points:
        return points
    steps = np.abs(np.diff(points, axis=0, prepend=points[:1]))
    # Relative to the extent of each axis; a curve may be flat.
    way = np.cumsum((steps / np.maximum(np.ptp(points, axis=0), 1e-12)).sum(1))
    nearest = np.searchsorted(way, np.linspace(0, way[-1], num_points))
    return points[np.unique(nearest)]
