"""Thresholds from what normal images gave: scored once, applied with any rate, blur and score."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rd_jax.config import FIELDS, Config, Depends, as_dict, differing, size_of
from rd_jax.data import Split
from rd_jax.data.order import holdout_indices
from rd_jax.method.calibration import Calibration, calibrate
from rd_jax.method.size import inside
from rd_jax.run.build import compute_dtype, scorer_of
from rd_jax.run.scoring import Scorer, in_batches
from rd_jax.store.checkpoint import Checkpoint
from rd_jax.store.distances import NormalDistances, read_distances, write_distances
from rd_jax.store.workdir import Training
from rd_jax.system import hosts

logger = logging.getLogger(__name__)

_MOST_TRAINED_ON = 200  # scored where none is held out: they set the heatmaps' scale alone
_MOST_PIXELS = 2**26  # that set their threshold; that of images takes all images
_CHUNK_PIXELS = 2**24  # of maps made at a time, always as many, so that they compile once


def kept_distances(config: Config, trained: Checkpoint, training: Training) -> NormalDistances:
    """Those beside the checkpoint; of no dtype if they are missing, or the config's are others."""
    student = trained.checksum
    found = read_distances(training.distances, student) if _is_kept(config, trained) else None
    return found or NormalDistances(False, student, {})


def _is_kept(config: Config, trained: Checkpoint) -> bool:
    """Whether the config's networks give the same distances as those of the training."""
    changed = differing(trained.metadata["config"], as_dict(config), Depends.SCORING)
    return all(FIELDS[name].depends & Depends.APPLIED for name, *_ in changed)


def missing_dtypes(config: Config, kept: NormalDistances) -> list[str]:
    """Of float32, whose thresholds hold on every device, and of the config's dtype.

    What one of several processes misses, all do.
    """
    wanted = sorted({"float32", compute_dtype(config).name})
    return [dtype for dtype in wanted if not hosts.all_agree(dtype in kept.by_dtype)]


def completed_distances(
    config: Config,
    split: Split,
    variables: tuple[Any, Any],
    scorer: Scorer,
    kept: NormalDistances,
    missing: list[str],
    trained: Checkpoint,
    training: Training,
) -> NormalDistances:
    """What is kept and what is missing of it, which is scored and then kept, too.

    Of the images held out or, without a hold-out, of some that were trained on; by `scorer` in
    the config's dtype. With a config of other distances than in training they are not kept.
    """
    _, held_out = holdout_indices(config.seed, config.holdout, len(split.train))
    chosen = held_out if len(held_out) else _spread(len(split.train), _MOST_TRAINED_ON)
    by_dtype = dict(kept.by_dtype)
    for dtype in missing:
        logger.info("%s: scoring %d normal images in %s", split.name, len(chosen), dtype)
        own = scorer if dtype == compute_dtype(config).name else scorer_of(config, dtype)
        by_dtype[dtype] = in_batches(
            own.distances, *variables, split.train, config.batch_size, chosen
        )
    regions = None if split.train_regions is None else split.train_regions[chosen]
    completed = NormalDistances(len(held_out) > 0, kept.checkpoint, by_dtype, regions)
    if missing and _is_kept(config, trained) and hosts.is_first():
        write_distances(training.distances, completed)
    return completed


def common_dtypes(found: Sequence[NormalDistances]) -> list[str]:
    """The dtypes that all of several categories have."""
    return [dtype for dtype in found[0].by_dtype if all(dtype in d.by_dtype for d in found)]


def pooled(found: Sequence[NormalDistances]) -> NormalDistances:
    """Those of several categories as one, of their `common_dtypes`."""
    by_dtype = {
        dtype: tuple(map(np.concatenate, zip(*(d.by_dtype[dtype] for d in found), strict=True)))
        for dtype in common_dtypes(found)
    }
    where = [d.regions for d in found if d.regions is not None]
    regions = np.concatenate(where) if where else None
    first = found[0]
    return NormalDistances(all(d.is_holdout for d in found), first.checkpoint, by_dtype, regions)


def calibration_of(config: Config, distances: NormalDistances, dtype: str) -> Calibration:
    """Thresholds and scale of scores that are computed in `dtype`, by the config's rates."""
    of_scales = distances.by_dtype[dtype]
    count, maps_of = len(of_scales[0]), scorer_of(config).maps
    most_maps = max(_MOST_PIXELS // math.prod(size_of(config)), 1)
    gives_pixels = np.isin(np.arange(count), _spread(count, most_maps))
    scores, maxima, pixels = [], [], []
    chunk_size = max(1, min(16, _CHUNK_PIXELS // math.prod(size_of(config))))
    for start in range(0, count, chunk_size):
        chunk = np.arange(start, start + chunk_size)
        where = [] if distances.regions is None else [distances.regions[chunk % count]]
        outputs = maps_of(tuple(scale[chunk % count] for scale in of_scales), *where)
        own = chunk[chunk < count]
        maps, of_images = (np.asarray(output)[: len(own)] for output in outputs)
        scores.append(of_images)
        maxima.append(maps.max((1, 2)))
        of_pixels = np.broadcast_to(gives_pixels[own][:, None, None], maps.shape)
        for regions in where:
            of_pixels = of_pixels & inside(regions[: len(own)], maps.shape[1:])
        pixels.append(maps[of_pixels])
    return calibrate(
        *map(np.concatenate, (scores, maxima, pixels)),
        is_holdout=distances.is_holdout,
        false_positive_rate=config.false_positive_rate,
        pixel_false_positive_rate=config.pixel_false_positive_rate,
        dtype=dtype,
    )


def _spread(count: int, most: int) -> np.ndarray:
    """At most so many of `count` indices, evenly spread."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)
