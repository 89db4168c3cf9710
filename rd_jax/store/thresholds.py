"""Thresholds beside the checkpoint that they belong to, and the scores that they come from."""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rd_jax.method.thresholds import NormalScores, Thresholds
from rd_jax.store.rows import read_json
from rd_jax.system.files import write_whole

logger = logging.getLogger(__name__)


class StoredThresholds(NamedTuple):
    """What an evaluation found out from normal images, for everybody who decides by it."""

    checkpoint: int  # checksum of the student's variables
    config: dict[str, Any]  # the fields that scores and thresholds depend on
    thresholds: Thresholds
    normal: NormalScores


def write_thresholds(path: Path, stored: StoredThresholds) -> None:
    """Write the whole file or nothing."""
    normal = {name: np.asarray(value).tolist() for name, value in stored.normal._asdict().items()}
    values = stored._asdict() | {"thresholds": stored.thresholds._asdict(), "normal": normal}
    write_whole(path, json.dumps(values, allow_nan=False).encode() + b"\n")


def read_thresholds(path: Path, checkpoint: int) -> StoredThresholds | None:
    """Read the thresholds of this checkpoint.

    Return None if there are none and, with a warning, if they are damaged.
    """
    found = read_json(path)
    if found.get("checkpoint") != checkpoint:
        return None
    try:
        is_held_out, scores, maxima, pixels = (found["normal"][n] for n in NormalScores._fields)
        arrays = np.array(scores, np.float32), np.array(maxima, np.float32), np.array(pixels)
        thresholds = Thresholds(**found["thresholds"])
        normal = NormalScores(is_held_out, *arrays)
        return StoredThresholds(checkpoint, found["config"], thresholds, normal)
    except (KeyError, TypeError, ValueError) as error:
        logger.warning("%s is left out (%s): let --mode eval write it again", path, error)
        return None
