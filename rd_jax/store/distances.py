"""What normal images gave at each scale: thresholds for any rate, blur and score come from it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from rd_jax.store.arrays import read_arrays, write_arrays


class NormalDistances(NamedTuple):
    """Of the images held out, all of them, or else of some that were trained on."""

    is_holdout: bool
    checkpoint: int  # checksum of the student's variables that gave them
    by_dtype: dict[str, tuple[np.ndarray, ...]]  # computed in it: [N, h, w] float32 of each scale
    regions: np.ndarray | None = None  # [N, 4] as of `size.Region`; None: all of each map


def write_distances(path: Path, distances: NormalDistances) -> None:
    """Writes the whole file or nothing."""
    arrays = {
        f"{dtype}-{i}": array
        for dtype, of_scales in distances.by_dtype.items()
        for i, array in enumerate(of_scales)
    }
    facts = {"is_holdout": distances.is_holdout, "checkpoint": distances.checkpoint}
    regions = {} if distances.regions is None else {"regions": distances.regions}
    write_arrays(path, facts | regions | arrays)


def read_distances(path: Path, checkpoint: int) -> NormalDistances | None:
    """What `write_distances` wrote of this checkpoint; None if there is none."""
    arrays = read_arrays(path)
    if not {"is_holdout", "checkpoint"} <= arrays.keys() or arrays["checkpoint"] != checkpoint:
        return None
    is_holdout = bool(arrays.pop("is_holdout"))
    del arrays["checkpoint"]
    regions = arrays.pop("regions", None)
    by_dtype: dict[str, tuple[np.ndarray, ...]] = {}
    for name in sorted(arrays):
        dtype = name.partition("-")[0]
        by_dtype[dtype] = (*by_dtype.get(dtype, ()), arrays[name])
    return NormalDistances(is_holdout, checkpoint, by_dtype, regions)
