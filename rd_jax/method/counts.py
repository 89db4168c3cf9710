"""Pixels counted as maps come, for curves over a test set of any size in bounded memory.

Values that share their sign, their exponent and the first `_MANTISSA_BITS` of their mantissa, and
so differ by less than 1 part in 65536, are one level: they tie. So the area under a ROC curve is
exact but for pairs of a normal and an anomalous pixel in one level, which count one half:
`largest_error` says how many these are.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from rd_jax.method.curves import Roc
from rd_jax.method.size import inside

_MANTISSA_BITS = 16
_DROPPED_BITS = 23 - _MANTISSA_BITS
_LEVELS_PER_OCTAVE = 2**_MANTISSA_BITS
_SMALLEST = np.float32(2.0**-40)  # what is nearer to 0 is 0


class Counts(NamedTuple):
    """How many pixels have which level; `lowest` is that of the first of K, ascending."""

    lowest: int
    normal: np.ndarray  # [K] int64
    anomalous: np.ndarray  # [K] int64
    regions: np.ndarray  # [K] float64: of each anomalous pixel its share of its region


def no_pixels() -> Counts:
    """Of an empty test set."""
    return Counts(0, np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


def counted(
    counts: Counts, maps: np.ndarray, masks: np.ndarray, regions: np.ndarray | None = None
) -> Counts:
    """The counts with those of more maps [N, H, W] float32 and masks [N, H, W] bool.

    With `regions` [N, 4], as of `size.Region`, of the pixels inside of these. Anomalous regions are
    8-connected. Raises ValueError for unequal shapes or values that are not finite.
    """
    check_maps(maps, masks)
    if not maps.size:
        return counts
    levels = _levels(maps)
    counts = _widened(counts, int(levels.min()), int(levels.max()))
    places, num_levels = levels - counts.lowest, counts.normal.size
    is_there = np.ones(maps.shape, bool) if regions is None else inside(regions, maps.shape[1:])
    masks, normal = masks & is_there, places[is_there & ~masks]
    anomalous = places[masks]
    return Counts(
        counts.lowest,
        counts.normal + np.bincount(normal, minlength=num_levels),
        counts.anomalous + np.bincount(anomalous, minlength=num_levels),
        counts.regions + np.bincount(anomalous, shares_of_regions(masks), num_levels),
    )


def check_maps(maps: np.ndarray, masks: np.ndarray) -> None:
    """Raises ValueError for unequal shapes or values that are not finite."""
    if maps.shape != masks.shape:
        raise ValueError(f"maps {maps.shape} and masks {masks.shape} differ in shape")
    if not np.isfinite(maps).all():
        raise ValueError("the anomaly maps hold values that are not finite")


def _levels(values: np.ndarray) -> np.ndarray:
    """The level of each value, int32; 0 for 0, and as far from it as there are levels between."""
    bits = np.abs(values).astype(np.float32).view(np.int32) - _SMALLEST.view(np.int32)
    from_zero = (np.maximum(bits, -1) >> _DROPPED_BITS) + 1
    return np.where(values < 0, -from_zero, from_zero)


def _widened(counts: Counts, lowest: int, highest: int) -> Counts:
    """The same counts with room for these levels, in whole octaves."""
    end = counts.lowest + counts.normal.size
    if not counts.normal.size:
        counts = counts._replace(lowest=lowest)
        end = lowest
    before = -(-max(counts.lowest - lowest, 0) // _LEVELS_PER_OCTAVE) * _LEVELS_PER_OCTAVE
    after = -(-max(highest + 1 - end, 0) // _LEVELS_PER_OCTAVE) * _LEVELS_PER_OCTAVE
    if not before and not after:
        return counts
    room = [np.pad(array, (before, after)) for array in counts[1:]]
    return Counts(counts.lowest - before, *room)


def shares_of_regions(masks: np.ndarray) -> np.ndarray:
    """What share of its 8-connected region each anomalous pixel is, in the order of `masks`."""
    shares = [np.empty(0)]
    for mask in masks:
        labels, _ = ndimage.label(mask, np.ones((3, 3)))
        shares.append(1 / np.bincount(labels.ravel())[labels[mask]])
    return np.concatenate(shares)


def pixel_curve(counts: Counts) -> Roc:
    """The curve in which every anomalous pixel weighs the same."""
    return curve_of_levels(counts.normal, counts.anomalous, counts.anomalous)


def region_curve(counts: Counts) -> Roc:
    """The curve in which every region weighs the same: of the per-region overlap."""
    return curve_of_levels(counts.normal, counts.anomalous, counts.regions)


def largest_error(counts: Counts) -> float:
    """How far the area under the pixels' ROC curve can be from that of values that do not tie."""
    pairs = counts.normal.sum() * counts.anomalous.sum()
    return float(counts.normal @ counts.anomalous / (2 * pairs)) if pairs else 0.0


def median(counts: Counts) -> float:
    """Of all pixels, to the width of a level; 0 of none."""
    up_to_level = np.cumsum(counts.normal + counts.anomalous)
    if not up_to_level.size:
        return 0.0
    level = counts.lowest + int(np.searchsorted(up_to_level, up_to_level[-1] / 2))
    bits = ((abs(level) - 1) << _DROPPED_BITS) + int(_SMALLEST.view(np.int32))
    return float(np.sign(level) * np.int32(bits).view(np.float32)) if level else 0.0


def curve_of_levels(normal: np.ndarray, anomalous: np.ndarray, weights: np.ndarray) -> Roc:
    """The curve of counts and weights at ascending levels [K]."""
    there = anomalous > 0

    def num_at_least(counts: np.ndarray) -> np.ndarray:
        return np.cumsum(counts[::-1])[::-1]

    level = num_at_least(normal)
    return Roc(
        weights[there] / max(weights.sum(), 1),
        num_at_least(anomalous)[there],
        level[there],
        (level - normal)[there],
        normal.sum(),
    )
