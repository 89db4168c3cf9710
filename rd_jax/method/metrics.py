"""Threshold-free metrics: exact with ties for images, counted in bounded memory for pixels."""

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy import ndimage

from rd_jax.method.curve import (
    Curve,
    area_under_roc,
    average_precision,
    curve_of,
    image_curve,
    max_f1,
)

logger = logging.getLogger(__name__)

MAX_FPR = 0.3  # up to which AUPRO integrates
_LAST_BITS = 2**7 - 1  # of float32's 23 bits of mantissa
_LARGEST_ERROR = 1e-3  # of the pixel AUROC by ties; below, it is far smaller


def auroc(scores: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Return the area under the ROC curve as a float32 scalar; equals sklearn's roc_auc_score.

    `scores` and `labels` have any, but the same shape; labels are bool, or 0 (normal) and 1
    (anomalous). It is exact with ties, in the precision of the scores: those of JAX, which may be
    traced, are compared in their dtype, others in NumPy's. NaN if a class is empty or a score is
    not finite. Raises ValueError for unequal shapes and for other labels, unless they are traced.
    """
    if np.shape(scores) != np.shape(labels):
        raise ValueError(f"scores {np.shape(scores)} and labels {np.shape(labels)} differ in shape")
    if not isinstance(labels, jax.core.Tracer):
        labels = _as_bool(labels, "labels")
        if not isinstance(scores, jax.Array):  # which may hold more than JAX's dtypes do
            curve = image_curve(np.asarray(scores), labels)
            is_defined = curve.is_defined and np.isfinite(scores).all()
            return jnp.float32(area_under_roc(curve) if is_defined else math.nan)
    return _auroc(jnp.ravel(scores), jnp.ravel(labels).astype(bool))


@jax.jit
def _auroc(scores: jax.Array, labels: jax.Array) -> jax.Array:
    if not scores.size:
        return jnp.float32(jnp.nan)
    num_normal = jnp.sum(~labels)
    # The anomalous ones go to the end, where they do not count.
    normal = jnp.sort(jnp.where(labels, jnp.max(scores), scores))
    lower, not_higher = (
        jnp.minimum(jnp.searchsorted(normal, scores, side=side), num_normal) / num_normal
        for side in ("left", "right")
    )
    area = jnp.sum(jnp.where(labels, lower + not_higher, 0)) / (
        2 * jnp.sum(labels, dtype=lower.dtype)
    )
    return jnp.where(jnp.isfinite(scores).all(), area, jnp.nan).astype(jnp.float32)


def aupro(maps: ArrayLike, masks: ArrayLike, max_fpr: float = MAX_FPR) -> float:
    """Return the area under the per-region-overlap curve of maps [N, H, W] and masks [N, H, W].

    Dataset-level: mean over all 8-connected regions of the covered fraction, against the
    false-positive rate over all normal pixels, integrated to `max_fpr` with interpolation there,
    divided by `max_fpr` (Bergmann et al., MVTec AD, section 4.2). It is exact in the precision of
    the maps, and computed on the host, so it does not trace under jit. NaN without a region or a
    normal pixel. Raises ValueError for unequal shapes, values that are not finite, masks other
    than bool or 0 and 1, and `max_fpr` outside of (0, 1].
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr={max_fpr}: must be above 0 and at most 1")
    maps, masks = np.asarray(maps), _as_bool(masks, "masks")
    _check_maps(maps, masks)
    curve = _counted_exactly(no_pixels(), maps, masks)
    return area_under_roc(curve, max_fpr) if curve.is_defined else math.nan


def _as_bool(labels: ArrayLike, name: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.dtype != bool and not np.isin(labels, (0, 1)).all():
        raise ValueError(f"{name} must be bool, or 0 (normal) and 1 (anomalous)")
    return labels.astype(bool)


def _check_maps(maps: np.ndarray, masks: np.ndarray) -> None:
    if maps.shape != masks.shape or maps.ndim != 3:
        raise ValueError(f"maps {maps.shape} and masks {masks.shape} must both be [N, H, W]")
    if not np.isfinite(maps).all():
        raise ValueError("the anomaly maps hold values that are not finite")


def no_pixels() -> Curve:
    """Return the pixels of no map at all: see `counted`."""
    return Curve(*np.zeros((4, 0), bool))


def counted(pixels: Curve, maps: np.ndarray, masks: np.ndarray | None = None) -> Curve:
    """Return the pixels with those of more maps [N, H, W] and their masks, bool [N, H, W].

    Memory is bounded: values that differ by less than 1 part in 65536 tie, at the highest of them.
    Anomalous pixels weigh their share of their 8-connected region. Without masks all pixels are
    normal. Raises ValueError for unequal shapes or values that are not finite.
    """
    maps = np.asarray(maps, np.float32)
    masks = np.zeros(maps.shape, bool) if masks is None else masks
    _check_maps(maps, masks)
    return _counted_exactly(pixels, highest_alike(maps), masks)


def _counted_exactly(pixels: Curve, maps: np.ndarray, masks: np.ndarray) -> Curve:
    """Return `counted`, but of values as they are."""
    shares = [np.zeros(0)]  # of its region, for each anomalous pixel
    for mask in masks:
        labels, _ = ndimage.label(mask, np.ones((3, 3)))
        shares.append(1 / np.bincount(labels.ravel())[labels[mask]])
    weights = np.concatenate(shares)
    # Most pixels are normal; to count them alone takes a fraction of the time.
    distinct, counts = np.unique(maps[~masks], return_counts=True)
    normal = distinct, counts, 0 * counts, 0 * counts
    anomalous = maps[masks], 0 * weights, np.ones_like(weights), weights
    return curve_of(*map(np.concatenate, zip(pixels, normal, anomalous, strict=True)))


def highest_alike(values: np.ndarray) -> np.ndarray:
    """Return the highest float32 that agrees with each in all but the last bits of mantissa."""
    bits = (values + 0).view(np.int32)  # -0 becomes 0
    return np.where(bits < 0, bits & ~_LAST_BITS, bits | _LAST_BITS).view(np.float32)


def median(pixels: Curve) -> float:
    """Return the median of all pixels, to 1 part in 65536; 0 if there are none."""
    up_to = np.cumsum(pixels.normal + pixels.anomalous)
    return float(pixels.scores[np.searchsorted(up_to, up_to[-1] / 2)]) if up_to.size else 0.0


class Metric(NamedTuple):
    """A metric's name where people read it, the curve it is read off, and how."""

    label: str
    over: Literal["scores", "sums", "maxima", "pixels", "regions"]  # the first three: of images
    of: Callable[[Curve], float]  # of a defined curve


METRICS = {
    "image_auroc": Metric("image AUROC", "scores", area_under_roc),
    "pixel_auroc": Metric("pixel AUROC", "pixels", area_under_roc),
    "aupro": Metric("AUPRO", "regions", partial(area_under_roc, max_fpr=MAX_FPR)),
    "image_ap": Metric("image AP", "scores", average_precision),
    "image_f1max": Metric("image F1 max", "scores", max_f1),
    "pixel_ap": Metric("pixel AP", "pixels", average_precision),
    "pixel_f1max": Metric("pixel F1 max", "pixels", max_f1),
    "image_auroc_sum": Metric("image AUROC (sum)", "sums", area_under_roc),
    "image_auroc_max": Metric("image AUROC (maximum)", "maxima", area_under_roc),
}


class Scored(NamedTuple):
    """All that metrics need of N test images."""

    scores: np.ndarray  # [N] float32
    sums: np.ndarray  # [N] of each map
    maxima: np.ndarray  # [N] of each map
    pixels: Curve  # of all maps, by `counted`; without masks all are normal


def metrics_of(
    maps: np.ndarray, scores: np.ndarray, labels: np.ndarray, masks: np.ndarray | None
) -> dict[str, float | None]:
    """Return all `METRICS` of a test split, as fractions; None where a metric is not defined.

    `maps` is float32 [N, H, W], `scores` float32 [N], `labels` bool [N] (true: anomalous),
    `masks` bool [N, H, W].
    """
    pixels = counted(no_pixels(), maps, masks)
    return metrics_of_scored(Scored(scores, maps.sum((1, 2)), maps.max((1, 2)), pixels), labels)


def metrics_of_scored(scored: Scored, labels: np.ndarray) -> dict[str, float | None]:
    """Return `metrics_of` N images with bool labels [N] from what was counted of their maps.

    Logs a warning if so many normal and anomalous pixels tie that it may show.
    """
    curves = {name: image_curve(getattr(scored, name), labels) for name in Scored._fields[:3]}
    pixels = scored.pixels
    curves |= {"pixels": pixels.unweighted(), "regions": pixels}
    shares = (x / max(x.sum(), 1) for x in (pixels.normal, pixels.anomalous))
    if (error := math.prod(shares).sum() / 2) > _LARGEST_ERROR:
        logger.warning("pixel AUROC may be off by %.1g: many pixels are nearly equal", error)
    return {
        name: metric.of(curves[metric.over]) if curves[metric.over].is_defined else None
        for name, metric in METRICS.items()
    }
