"""Threshold-free metrics, exact with ties, all read off one weighted ROC curve."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rd_jax.method.counts import (
    Counts,
    check_maps,
    counted,
    no_pixels,
    pixel_curve,
    region_curve,
    shares_of_regions,
)
from rd_jax.method.curves import (
    Array,
    Roc,
    area_under_precision_recall,
    area_under_roc,
    labelled_roc,
    max_f1,
    roc_of_samples,
    roc_of_scores,
)


@jax.jit
def auroc(scores: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Area under the ROC curve of `scores` with `labels` (true: anomalous), exact with ties.

    Both have any, but the same shape. Returns a float32 scalar; NaN if a class is empty or a
    score is not finite. Raises ValueError if the sizes differ. Equals sklearn's roc_auc_score.
    """
    return jnp.asarray(area_under_roc(labelled_roc(scores, labels)))


@jax.jit
def average_precision(scores: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Average precision, with the conventions of `auroc`; sklearn's average_precision_score."""
    return jnp.asarray(area_under_precision_recall(labelled_roc(scores, labels)))


@jax.jit
def f1_max(scores: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The largest F1 over all thresholds, with the conventions of `auroc`."""
    return jnp.asarray(max_f1(labelled_roc(scores, labels)))


def aupro(maps: ArrayLike, masks: ArrayLike, max_fpr: float = 0.3) -> Array:
    """Area under the per-region-overlap curve of maps [N, H, W] with masks [N, H, W].

    Dataset-level: mean over all 8-connected regions of the covered fraction, against the
    false-positive rate over all normal pixels, integrated to `max_fpr` with interpolation there,
    divided by `max_fpr` (Bergmann et al., MVTec AD, section 4.2). Returns a float32 scalar; NaN
    without a region or a normal pixel. Raises ValueError for unequal shapes or values that are
    not finite. It is computed on the host, so this does not trace under jit.
    """
    maps, masks = np.asarray(maps, np.float32), np.asarray(masks, bool)
    check_maps(maps, masks)
    curve = roc_of_samples(maps[masks], maps[~masks], shares_of_regions(masks))
    return area_under_roc(curve, max_fpr)


class Metric(NamedTuple):
    """What a metric is called where people read it, and what it is of which curve."""

    label: str
    over: Literal["scores", "sums", "maxima", "pixels", "regions"]  # the first three: of images
    of: Callable[[Roc], Array]


METRICS = {
    "image_auroc": Metric("image AUROC", "scores", area_under_roc),
    "pixel_auroc": Metric("pixel AUROC", "pixels", area_under_roc),
    "aupro": Metric("AUPRO", "regions", partial(area_under_roc, max_fpr=0.3)),
    "image_ap": Metric("image AP", "scores", area_under_precision_recall),
    "image_f1max": Metric("image F1 max", "scores", max_f1),
    "pixel_ap": Metric("pixel AP", "pixels", area_under_precision_recall),
    "pixel_f1max": Metric("pixel F1 max", "pixels", max_f1),
    "image_auroc_sum": Metric("image AUROC (sum)", "sums", area_under_roc),
    "image_auroc_max": Metric("image AUROC (maximum)", "maxima", area_under_roc),
}


class Scored(NamedTuple):
    """What metrics need of N scored test images, besides their labels."""

    scores: np.ndarray  # [N] float32
    sums: np.ndarray  # [N] of each map
    maxima: np.ndarray  # [N] of each map
    pixels: Counts  # of all maps; without masks all are normal


def metrics_of(
    maps: np.ndarray, scores: np.ndarray, labels: np.ndarray, masks: np.ndarray | None
) -> dict[str, float | None]:
    """All `METRICS` of a test split, as fractions; None where a metric is not defined.

    `maps` is float32 [N, H, W], `scores` float32 [N], `labels` bool [N] (true: anomalous),
    `masks` bool [N, H, W].
    """
    pixels = no_pixels() if masks is None else counted(no_pixels(), maps, masks)
    return metrics_of_scored(Scored(scores, *sums_and_maxima(maps), pixels), labels)


def sums_and_maxima(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both of each map: [N, H, W] -> [N], [N]."""
    return maps.sum((1, 2)), maps.max((1, 2))


def metrics_of_scored(found: Scored, labels: np.ndarray) -> dict[str, float | None]:
    """`metrics_of` from what was counted of the maps."""
    curves = {of: roc_of_scores(getattr(found, of), labels) for of in Scored._fields[:3]}
    curves |= {"pixels": pixel_curve(found.pixels), "regions": region_curve(found.pixels)}
    values = {name: float(metric.of(curves[metric.over])) for name, metric in METRICS.items()}
    return {name: None if math.isnan(value) else value for name, value in values.items()}
