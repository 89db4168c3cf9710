"""What normal images gave at each scale: thresholds for any rate, blur and score come from it."""

import io
import logging
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rd_jax.system.files import write_whole

logger = logging.getLogger(__name__)


class NormalDistances(NamedTuple):
    """Of the images held out, all of them, or else of some that were trained on."""

    is_holdout: bool
    checkpoint: int  # checksum of the student's variables that gave them
    by_dtype: dict[str, tuple[np.ndarray, ...]]  # computed in it: [N, h, w] float32 of each scale


def write_distances(path: Path, distances: NormalDistances) -> None:
    """Writes an .npz file, whole or not at all."""
    arrays = {
        f"{dtype}-{i}": array
        for dtype, of_scales in distances.by_dtype.items()
        for i, array in enumerate(of_scales)
    }
    file = io.BytesIO()
    facts = {"is_holdout": distances.is_holdout, "checkpoint": distances.checkpoint}
    np.savez(file, allow_pickle=False, **facts, **arrays)
    write_whole(path, file.getvalue())


def read_distances(path: Path, checkpoint: int) -> NormalDistances | None:
    """What `write_distances` wrote of this checkpoint; None, with a warning if damaged, if not."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            arrays = dict(file)
            found = NormalDistances(
                bool(arrays.pop("is_holdout")), int(arrays.pop("checkpoint")), {}
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s is left out, since it cannot be read (%s)", path, error)
        return None
    for name in sorted(arrays):
        dtype = name.partition("-")[0]
        found.by_dtype[dtype] = (*found.by_dtype.get(dtype, ()), arrays[name])
    return found if found.checkpoint == checkpoint else None
