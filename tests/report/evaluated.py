"""What evaluations leave, with drawn maps instead of learnt ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from rd_jax.data import Split
from rd_jax.data.synthetic import DEFECTS, weave
from rd_jax.method.metrics import METRICS, Scored, counted, no_pixels
from rd_jax.method.thresholds import NormalScores, Thresholds
from rd_jax.report.gallery import (
    Evaluated,
    Shown,
    chosen,
    read_evaluation,
    small_map,
    write_evaluation,
)
from rd_jax.store.results import AT_THRESHOLD, VERDICTS
from rd_jax.store.rows import append_row, write_json
from rd_jax.store.thresholds import StoredThresholds, write_thresholds
from rd_jax.store.workdir import Evaluation, Workdir

THRESHOLDS = Thresholds("holdout", 12, 0.05, 1.5, 0.9, 0.1, 2.1, 1 / 13, 0.001)
NUM_HELD_OUT = 3  # that are shown
CHECKSUM = 7  # of the checkpoint that was evaluated
_NORMAL = NormalScores(True, np.linspace(0.5, 1.5, 12), np.linspace(0.5, 1.5, 12), np.zeros((1, 2)))


def weave_split(count: int, size: int = 32) -> tuple[Split, np.ndarray]:
    """Every fifth image of the generated category is normal; the maps are drawn, too."""
    rng = np.random.default_rng(0)
    kinds = [None, *DEFECTS]
    drawn = [weave(rng, size, kinds[i % len(kinds)]) for i in range(count)]
    images = np.array([image for image, _ in drawn], np.uint8).reshape(-1, size, size, 3)
    masks = np.array([mask for _, mask in drawn], bool).reshape(-1, size, size)
    labels = np.array([i % len(kinds) > 0 for i in range(count)], bool)
    names = tuple(f"{kinds[i % len(kinds)] or 'good'}/{i:03}.png" for i in range(count))
    maps = (0.5 * masks + rng.gamma(2, 0.2, masks.shape)).astype(np.float32)
    train = np.array([weave(rng, size)[0] for _ in range(NUM_HELD_OUT)], np.uint8)
    train_names = tuple(f"{i:03}.png" for i in range(NUM_HELD_OUT))
    return Split("weave", train, train_names, (), images, names, "", labels, masks), maps


def write(
    path: Path, split: Split, maps: np.ndarray, scores: np.ndarray, thresholds: Thresholds | None
) -> Evaluated:
    """`write_evaluation` of maps and scores of all test images, and what is read of it."""
    pixels = counted(no_pixels(), maps, split.masks)
    scored = Scored(scores, maps.sum((1, 2)), maps.max((1, 2)), pixels)
    places = chosen(split, scores, thresholds)
    shown = Shown(places, scores[places], [*map(small_map, maps[places])])
    held_out = np.arange(len(split.train) if thresholds else 0)[::-1]
    drawn = np.random.default_rng(1).gamma(2, 0.2, (len(held_out), *split.train.shape[1:3]))
    highest = Shown(held_out, drawn.max((1, 2)), [*map(small_map, drawn)])
    write_evaluation(path, split, scored, shown, highest)
    evaluated = read_evaluation(path)
    assert evaluated is not None
    return evaluated


def row(category: str, value: float | None, **values: object) -> dict:
    """Results of which all metrics are `value`."""
    facts = {
        "backbone": "resnet18", "teacher_weights": "imagenet", "image_size": 256,
        "num_epochs": 10, "loss": "per_position", "seed": 0, "num_steps": 131, "last_step": 131,
        "dataset": "", "rd4ad_checkpoint": "", "bottleneck": "mff_oce", "scales": [1, 2, 3],
        "image_score": "max", "holdout": 0.0, "num_held_out": 0, "blur_sigma": 4.0,
        "dtype": "float32", "train_seconds": 2.0, "eval_seconds": 1.0, "images_per_second": 3.0,
        "device": "1 x cpu", "joint": False, "direction": "reverse", "image_threshold": None,
        **dict.fromkeys((*AT_THRESHOLD, *VERDICTS)),
    }  # fmt: skip
    return {"category": category, **dict.fromkeys(METRICS, value), **facts, **values}


def place_of(workdir: Path, category: str, seed: int | None = None) -> Evaluation:
    return Workdir(workdir).training(category, seed).evaluation(category)


def add_results(
    workdir: Path,
    category: str,
    value: float | None = 0.9,
    seed_folder: int | None = None,
    **facts: object,
) -> Evaluation:
    """Leave results.json."""
    place = place_of(workdir, category, seed_folder)
    of_seed = {} if seed_folder is None else {"seed": seed_folder}
    write_json(place.results, row(category, value, **of_seed | facts))
    return place


STORED = StoredThresholds(CHECKSUM, {}, THRESHOLDS, _NORMAL)


def keep_thresholds(place: Evaluation) -> None:
    write_thresholds(place.thresholds, STORED)


def add_evaluation(workdir: Path, category: str, suffix: str = "") -> Evaluation:
    """Leave what an evaluation does besides figures; `suffix` is of the images' names."""
    place = add_results(workdir, category, checkpoint=CHECKSUM)
    split, maps = weave_split(10)
    split = replace(split, test_names=tuple(f"{name}{suffix}" for name in split.test_names))
    write(place.shown, split, maps, maps.max((1, 2)), THRESHOLDS)
    keep_thresholds(place)
    for step in (1, 2, 3):
        append_row(place.folder / "metrics.jsonl", {"step": step, "loss": 1 / step})
    return place
