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

MAX_FPR = 0.3  # AUPRO integrates up to here
_LAST_BITS = 2**7 - 1  # the 7 lowest of float32's 23 bits of mantissa
_LARGEST_ERROR = 1e-3  # of the pixel AUROC because of ties; usually it is far smaller


def auroc(scores: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Return the area under the ROC curve as a float32 scalar, equal to sklearn's roc_auc_score.

    `scores` and `labels` have the same shape, of any rank. Labels are bool, or 0 (normal) and 1
    (anomalous). The area is exact with ties, in the precision of the scores: JAX arrays, which may
    be traced, are compared in their dtype, other scores in NumPy's. The area is NaN if a class is
    empty or a score is not finite. Raises ValueError for unequal shapes and, unless they are
    traced, for other labels.
    """
    if np.shape(scores) != np.shape(labels):
        raise ValueError(f"scores {np.shape(scores)} and labels {np.shape(labels)} differ in shape")
    if not isinstance(labels, jax.core.Tracer):
        labels = _as_bool(labels, "labels")
        if not isinstance(scores, jax.Array):  # may be float64, which JAX rounds
            curve = image_curve(np.asarray(scores), labels)
            is_defined = curve.is_defined and np.isfinite(scores).all()
            return jnp.float32(area_under_roc(curve) if is_defined else math.nan)
    return _auroc(jnp.ravel(scores), jnp.ravel(labels).astype(bool))


@jax.jit
def _auroc(scores: jax.Array, labels: jax.Array) -> jax.Array:
    if not scores.size:
        return jnp.float32(jnp.nan)
    num_normal = jnp.sum(~labels)
    # Anomalous scores go to the end, where they are not counted.
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

    The curve is the covered fraction, averaged over all 8-connected regions of the data set,
    against the false-positive rate over all normal pixels. The area up to `max_fpr`, interpolated
    there, is divided by `max_fpr` (Bergmann et al., MVTec AD, section 4.2). It is exact in the
    precision of the maps. The host computes it, so it does not trace under jit. It is NaN without a
    region or without a normal pixel. Raises ValueError for unequal shapes, values that are not
    finite, masks other than bool or 0 and 1, and `max_fpr` outside of (0, 1].
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
    """Return a count of no pixels, to which `counted` adds."""
    return Curve(*np.zeros((4, 0), bool))


def counted(pixels: Curve, maps: np.ndarray, masks: np.ndarray | None = None) -> Curve:
    """Add the pixels of maps [N, H, W] with masks, bool [N, H, W], to those counted before.

    To bound memory, values that differ by less than 1 part in 65536 count as the highest of them.
    A pixel of an 8-connected region of n pixels weighs 1/n. Without masks all pixels are normal.
    Raises ValueError for unequal shapes or values that are not finite.
    """
    maps = np.asarray(maps, np.float32)
    masks = np.zeros(maps.shape, bool) if masks is None else masks
    _check_maps(maps, masks)
    return _counted_exactly(pixels, highest_alike(maps), masks)


def _counted_exactly(pixels: Curve, maps: np.ndarray, masks: np.ndarray) -> Curve:
    """Do the same as `counted`, without rounding the values."""
    shares = [np.zeros(0)]  # 1 / the size of its region, for each anomalous pixel
    for mask in masks:
        labels, _ = ndimage.label(mask, np.ones((3, 3)))
        shares.append(1 / np.bincount(labels.ravel())[labels[mask]])
    weights = np.concatenate(shares)
    # Most pixels are normal. Counting their equal values first takes a fraction of the time.
    distinct, counts = np.unique(maps[~masks], return_counts=True)
    normal = distinct, counts, 0 * counts, 0 * counts
    anomalous = maps[masks], 0 * weights, np.ones_like(weights), weights
    return curve_of(*map(np.concatenate, zip(pixels, normal, anomalous, strict=True)))


def highest_alike(values: np.ndarray) -> np.ndarray:
    """Return the highest float32 that differs from each value in the last bits of mantissa only."""
    bits = (values + 0).view(np.int32)  # -0 becomes 0
    return np.where(bits < 0, bits & ~_LAST_BITS, bits | _LAST_BITS).view(np.float32)


def median(pixels: Curve) -> float:
    """Return the median of all pixels, to 1 part in 65536; 0 if there are none."""
    up_to = np.cumsum(pixels.normal + pixels.anomalous)
    return float(pixels.scores[np.searchsorted(up_to, up_to[-1] / 2)]) if up_to.size else 0.0


class Metric(NamedTuple):
    """A metric: its name for people, the curve that it needs, and the function of that curve."""

    label: str
    over: Literal["scores", "sums", "maxima", "pixels", "regions"]  # first three: of images
    of: Callable[[Curve], float]  # takes a curve with both classes


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
    """The values of N test images that the metrics need."""

    scores: np.ndarray  # [N] float32
    sums: np.ndarray  # [N] the sum of each map
    maxima: np.ndarray  # [N] the maximum of each map
    pixels: Curve  # of all maps, from `counted`; without masks all are normal


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
    """Return the same as `metrics_of`, from counted pixels of N images with bool labels [N].

    Log a warning if ties of normal and anomalous pixels may change the pixel AUROC visibly.
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
