"""Thresholds, stored beside their checkpoint with the scores that they come from."""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rd_jax.method.thresholds import NormalScores, Thresholds
from rd_jax.store.rows import read_json
from rd_jax.system.files import write_whole

logger = logging.getLogger(__name__)


class Added(NamedTuple):
    """Good images that came after the training."""

    date: str  # YYYY-MM-DD
    hashes: list[str]  # one for each image: see `pixel_hash`
    replaces: bool  # whether they replace the images known before


class StoredThresholds(NamedTuple):
    """The thresholds of a checkpoint, and what they come from."""

    checkpoint: int  # checksum of the student's variables
    config: dict[str, Any]  # the fields that scores and thresholds depend on
    thresholds: Thresholds
    normal: NormalScores
    added: tuple[Added, ...] = ()
    before: "StoredThresholds | None" = None  # --undo goes back to these


def write_thresholds(path: Path, stored: StoredThresholds) -> None:
    """Write the whole file or nothing."""
    write_whole(path, json.dumps(_as_json(stored), allow_nan=False).encode() + b"\n")


def _as_json(stored: StoredThresholds) -> dict[str, Any]:
    normal = {name: np.asarray(value).tolist() for name, value in stored.normal._asdict().items()}
    return stored._asdict() | {
        "thresholds": stored.thresholds._asdict(),
        "normal": normal,
        "added": [added._asdict() for added in stored.added],
        "before": stored.before and _as_json(stored.before),
    }


def read_thresholds(path: Path, checkpoint: int) -> StoredThresholds | None:
    """Read the thresholds of this checkpoint.

    Return None if there are none and, with a warning, if they are damaged.
    """
    found = read_json(path)
    if found.get("checkpoint") != checkpoint:
        return None
    try:
        return _from_json(found)
    except (KeyError, TypeError, ValueError) as error:
        logger.warning("%s is left out (%s): let --mode eval write it again", path, error)
        return None


def _from_json(found: dict[str, Any]) -> StoredThresholds:
    of_normal = found["normal"]
    scores, maxima = (np.array(of_normal[name], np.float32) for name in ("scores", "maxima"))
    normal = of_normal | {
        "scores": scores,
        "maxima": maxima,
        "pixels": np.array(of_normal["pixels"]),
    }
    return StoredThresholds(
        found["checkpoint"],
        found["config"],
        Thresholds(**found["thresholds"]),
        NormalScores(**normal),
        tuple(Added(**added) for added in found["added"]),
        found["before"] and _from_json(found["before"]),
    )
