"""What the report page needs of one evaluation, kept as a file beside its results."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rd_jax.data import Split
from rd_jax.data.decode import resized
from rd_jax.method.calibration import Calibration
from rd_jax.method.counts import median, pixel_curve, region_curve
from rd_jax.method.curves import curve_points, roc_of_scores, up_to
from rd_jax.method.metrics import Scored
from rd_jax.report.heatmap import resized_map, strength
from rd_jax.store.arrays import read_arrays, write_arrays

logger = logging.getLogger(__name__)

MAX_FPR = 0.3  # of the PRO curve, as of the metric
_MAX_SHOWN = 120
_NUM_EXAMPLES = 8  # about
_MAX_SIZE = 192  # pixels
_MAX_POINTS = 300


class Evaluation(NamedTuple):
    """Scores of M test images, curves [., 2] (none where undefined), and G images to look at."""

    names: np.ndarray  # [M] str
    labels: np.ndarray  # [M] bool, true: anomalous
    scores: np.ndarray  # [M] float32
    image_roc: np.ndarray
    pixel_roc: np.ndarray
    pro: np.ndarray  # to a false-positive rate of MAX_FPR
    map_range: np.ndarray  # [2] values of the map shown as calm and at full strength
    calibration: Calibration | None  # JSON in the file
    shown: np.ndarray  # [G] which of the M images
    images: np.ndarray  # [G, h, w, 3] uint8
    strengths: np.ndarray  # [G, h, w] uint8: the map, from calm to full strength
    masks: np.ndarray  # [G, h, w] uint8, or [0] without masks


def read_evaluation(path: Path) -> Evaluation | None:
    """What `write_evaluation` wrote, or None; with a warning, if it is something else."""
    arrays: dict[str, Any] = dict(read_arrays(path))
    if not arrays:
        return None
    try:
        values = json.loads(str(arrays["calibration"]))
        arrays["calibration"] = values and Calibration(**values)
        return Evaluation(**arrays)
    except (KeyError, TypeError, ValueError) as error:
        logger.warning("%s is left out, since it is of another version (%s)", path, error)
        return None


def write_evaluation(
    path: Path,
    split: Split,
    found: Scored,
    shown: np.ndarray,
    maps: Sequence[np.ndarray],
    calibration: Calibration | None,
) -> None:
    """Writes an .npz file, whole or not at all.

    `found` is of the split's M test images, `maps` the `small_map` of those `shown`, as of
    `chosen`.
    Without a calibration, heatmaps reach from the median to the maximum of all maps.
    """
    labels, masks, scores = split.labels, split.masks, found.scores
    low, high = 0.0, 1.0
    if calibration:
        low, high = calibration.map_low, calibration.map_high
    elif len(scores):
        low, high = median(found.pixels), float(found.maxima.max())
    curves = pixel_curve(found.pixels), region_curve(found.pixels)
    pixels, pro = map(curve_points, curves)
    size = _thumbnail(*split.test.shape[1:3])
    images = [resized(Image.fromarray(split.test[i]), size) for i in shown]
    strengths = [strength(of_image, low, high) for of_image in maps]
    shown_masks = [] if masks is None else [resized_map(255 * masks[i], size) for i in shown]
    evaluation = Evaluation(
        np.array(split.test_names, str),
        labels,
        scores,
        thinned(curve_points(roc_of_scores(scores, labels)), _MAX_POINTS),
        thinned(pixels, _MAX_POINTS),
        thinned(up_to(pro, MAX_FPR), _MAX_POINTS),
        np.array([low, high]),
        calibration,
        shown,
        np.array(images, np.uint8),
        np.array(strengths, np.uint8),
        np.array(shown_masks, np.uint8),
    )
    text = json.dumps(calibration and calibration._asdict())
    write_arrays(path, evaluation._asdict() | {"calibration": np.array(text)})


def chosen(split: Split, scores: np.ndarray, calibration: Calibration | None) -> np.ndarray:
    """Which of the split's M test images with scores [M] are shown: errors, and clear examples."""
    errors = wrongness(scores, split.labels, calibration)
    clear = examples(split.test_names, split.labels, scores, errors)
    shown = informative(errors, scores, _MAX_SHOWN)
    return np.concatenate([shown, clear[~np.isin(clear, shown)]])


def small_map(anomaly_map: np.ndarray) -> np.ndarray:
    """A map [H, W] at the size at which it is shown."""
    return resized_map(anomaly_map, _thumbnail(*anomaly_map.shape))


def _thumbnail(height: int, width: int) -> tuple[int, int]:
    """Height and width of what is shown, in the same ratio."""
    scale = min(1.0, _MAX_SIZE / max(height, width))
    return round(scale * height), round(scale * width)


def wrongness(
    scores: np.ndarray, labels: np.ndarray, calibration: Calibration | None
) -> np.ndarray:
    """How far each score [M] lies on the wrong side of the threshold; negative on the right one.

    Without a threshold in the calibration, of the one with the best F1 on these labels [M].
    """
    threshold = calibration.image_threshold if calibration else None
    if threshold is None:
        threshold = _best_f1_threshold(scores, labels)
    return np.where(labels, threshold - scores, scores - threshold)


def _best_f1_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    if not labels.any():
        return 0.0
    anomalous, curve = scores[labels], roc_of_scores(scores, labels)
    called = np.asarray(curve.true_positives + curve.false_positives)
    f1 = 2 * np.asarray(curve.true_positives) / (called + anomalous.size)
    return float(anomalous[np.argmax(f1[: anomalous.size])])


def informative(wrongness: np.ndarray, scores: np.ndarray, limit: int) -> np.ndarray:
    """Which images to show, at most `limit`, worst first.

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
    """The kind of defect: the first folder in the name of a test image, or nothing."""
    return name.partition("/")[0] if "/" in name else ""


def examples(
    names: Sequence[str], labels: np.ndarray, scores: np.ndarray, wrongness: np.ndarray
) -> np.ndarray:
    """Which images show best what was found: a few on the right side of the threshold.

    A normal image of middling score, and those of each kind of defect with the highest scores.
    """
    kinds, right = np.array([kind_of(name) for name in names], str), wrongness <= 0
    normal = np.flatnonzero(~labels & right)
    normal = normal[np.argsort(scores[normal], kind="stable")]
    defective = np.flatnonzero(labels & right)
    defective = defective[np.argsort(-scores[defective], kind="stable")]
    found = np.unique(kinds[defective])
    of_each = max(1, _NUM_EXAMPLES // max(1, len(found)))
    clear = [defective[kinds[defective] == kind][:of_each] for kind in found]
    one_of_each_first = [of_kind[i : i + 1] for i in range(of_each) for of_kind in clear]
    return np.concatenate([normal[len(normal) // 2 :][:1], *one_of_each_first])


def thinned(points: np.ndarray, num_points: int) -> np.ndarray:
    """At most so many of the points [K, 2] of a rising curve, evenly spaced along it."""
    if len(points) <= num_points:
        return points
    steps = np.abs(np.diff(points, axis=0, prepend=points[:1]))
    # Relative to the extent of each axis; a curve may be flat.
    way = np.cumsum((steps / np.maximum(np.ptp(points, axis=0), 1e-12)).sum(1))
    nearest = np.searchsorted(way, np.linspace(0, way[-1], num_points))
    return points[np.unique(nearest)]
