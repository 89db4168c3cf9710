"""Evaluate students trained here or by the authors' code, and write the results."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rd_jax.config import EVALUATED_ALIKE, RATES, RECORDED, as_dict
from rd_jax.data import Split
from rd_jax.data.copies import groups_of
from rd_jax.method.metrics import metrics_of_scored
from rd_jax.method.thresholds import (
    NormalScores,
    Thresholds,
    metrics_at,
    pixel_table,
    thresholds_of,
)
from rd_jax.report import figures, gallery, page, tables
from rd_jax.report.words import caution, rate_in_words
from rd_jax.run.plan import compute_dtype, held_out_of
from rd_jax.run.scoring import Score, score_images, score_normal, score_split
from rd_jax.run.trained import Trained
from rd_jax.store.lock import held
from rd_jax.store.results import TIMING, read_results
from rd_jax.store.rows import read_json, write_json
from rd_jax.store.thresholds import StoredThresholds, read_thresholds, write_thresholds
from rd_jax.store.workdir import Evaluation, Workdir
from rd_jax.system import hosts

logger = logging.getLogger(__name__)

# Facts that are unknown if the authors' code trained the student.
_OF_TRAINING = ("loss", "ema", "seed", "num_epochs", "num_steps", "last_step", *TIMING)
_MOST_TRAINED_ON = 200  # scored if none is held out: they set the heatmaps' scale only
_NUM_HELD_OUT_SHOWN = 3


def evaluate(
    trained: Trained, split: Split, place: Evaluation, on_any_device: bool = False
) -> None:
    """Evaluate a student on a category and write the results, unless they are there already.

    With `on_any_device`, results from other devices will do.
    """
    checkpoint = trained.checkpoint
    known = _what_is_evaluated(trained, split) | {
        "checkpoint": checkpoint.checksum,
        "num_steps": checkpoint.step,
        "last_step": checkpoint.last_step,
        **checkpoint.metadata["timing"],
    }
    if trained.config.rd4ad_checkpoint:
        known |= dict.fromkeys(_OF_TRAINING)
    stored = read_thresholds(place.thresholds, checkpoint.checksum)
    found = read_json(place.results)
    known |= {"device": found.get("device", known["device"])} if on_any_device else {}
    is_complete = gallery.read_evaluation(place.shown) is not None
    is_complete &= stored is not None or not checkpoint.is_finished
    if is_complete and known.items() <= found.items():
        logger.info("%s: evaluated already, in %s", split.name, place.results)
        return
    if hosts.is_first():
        place.results.unlink(missing_ok=True)  # it says that the other files are complete
    score, thresholds, highest = trained.score, None, np.zeros(0, int)
    if checkpoint.is_finished and (normal := _normal_scores(trained, split, score, stored)):
        thresholds = _keep_thresholds(trained, normal, stored, place)
        highest = _highest_held_out(trained, split, normal)
        logger.info("%s: %s", split.name, rate_in_words(thresholds))
        if few := caution(thresholds):
            logger.warning("%s: %s", split.name, few)
    _write(known, split, score, thresholds, highest, place)


def _normal_scores(
    trained: Trained, split: Split, score: Score, stored: StoredThresholds | None
) -> NormalScores | None:
    """Return the scores of normal images: those held out, or else some that were trained on.

    Stored scores are valid for other rates, but not for other settings of scoring.
    """
    config = trained.config
    alike = {name: as_dict(config)[name] for name in EVALUATED_ALIKE if name not in RATES}
    if stored is not None and alike.items() <= stored.config.items():
        return stored.normal
    if not _has_training_images(trained, split):
        logger.warning(
            "%s: no thresholds, since the training images are not those of the training: set "
            "--config.data_dir to their folder",
            split.name,
        )
        return None
    count = len(split.train)
    _, chosen = held_out_of(config, split)
    is_held_out = len(chosen) > 0
    if not is_held_out:
        chosen = np.linspace(0, count - 1, min(count, _MOST_TRAINED_ON)).astype(int)
    logger.info("%s: scoring %d normal images", split.name, len(chosen))
    scores, maxima, pixels = score_normal(score, split.train, config.batch_size, chosen)
    if is_held_out:  # a group counts once, by its highest score
        groups = groups_of(split, config.group_by)[chosen]
        of_groups = [groups == group for group in np.unique(groups)]
        scores, maxima = (np.array([x[of].max() for of in of_groups]) for x in (scores, maxima))
    return NormalScores(is_held_out, scores, maxima, pixel_table(pixels))


def _has_training_images(trained: Trained, split: Split) -> bool:
    return trained.checkpoint.metadata["train_sha256"].get(split.name) == split.train_sha256


def _highest_held_out(trained: Trained, split: Split, normal: NormalScores) -> np.ndarray:
    """Return the held-out training images with the highest scores, if they are known."""
    if not _has_training_images(trained, split):
        return np.zeros(0, int)
    _, chosen = held_out_of(trained.config, split)
    scores = normal.scores[: len(normal.scores) - normal.num_added]  # added images come last
    if len(scores) != len(chosen):
        return chosen[:0]
    return chosen[np.argsort(-scores, kind="stable")[:_NUM_HELD_OUT_SHOWN]]


def _keep_thresholds(
    trained: Trained, normal: NormalScores, stored: StoredThresholds | None, place: Evaluation
) -> Thresholds:
    fields = as_dict(trained.config)
    scored_with = {name: fields[name] for name in EVALUATED_ALIKE}
    thresholds = thresholds_of(normal, **{name: fields[name] for name in RATES})
    kept = StoredThresholds(trained.checkpoint.checksum, scored_with, thresholds, normal)
    if stored and normal is stored.normal:
        kept = kept._replace(added=stored.added, before=stored.before)
    elif stored and stored.added:
        logger.warning(
            "%s: good images that were added later do not count any more, as their scores would "
            "differ: add them again with python -m rd_jax.calibrate",
            place.label,
        )
    if hosts.is_first():
        write_thresholds(place.thresholds, kept)
    return thresholds


def _what_is_evaluated(trained: Trained, split: Split) -> dict[str, Any]:
    """Return the facts that figures depend on, without the progress of the training."""
    config, teacher = trained.config, trained.teacher
    fields = as_dict(config)
    return {
        "category": split.name,
        "test_sha256": split.test_sha256,
        **{name: fields[name] for name in RECORDED},
        "teacher_weights": Path(teacher.weights).name,
        "teacher_sha256": teacher.sha256,
        "rd4ad_checkpoint": Path(config.rd4ad_checkpoint).name,
        "dtype": compute_dtype(config).name,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def _write(
    known: Mapping[str, Any],
    split: Split,
    score: Score,
    thresholds: Thresholds | None,
    highest: np.ndarray,
    place: Evaluation,
) -> None:
    """Score the test images; write the files for the page and, at the end, results.json.

    `highest` are training images that the page shows, too.
    """
    start = time.perf_counter()
    scored, maps_of = score_split(score, split, known["batch_size"])
    shown = gallery.chosen(split, scored.scores, thresholds)
    of_test = gallery.Shown(shown, scored.scores[shown], maps_of(shown, gallery.small_map))
    maps, scores = score_images(score, split.train[highest], known["batch_size"])
    held_out = gallery.Shown(highest, scores, [*map(gallery.small_map, maps)])
    if not hosts.is_first():
        return
    row = {
        **known,
        **metrics_of_scored(scored, split.labels),
        **_by_thresholds(thresholds, scored.scores, split.labels),
        "eval_seconds": time.perf_counter() - start,
    }
    gallery.write_evaluation(place.shown, split, scored, of_test, held_out)
    figures.write_figures(place, row)
    write_json(place.results, row)


def _by_thresholds(
    thresholds: Thresholds | None, scores: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Return the thresholds for results.json, and their verdicts on test images [M]."""
    found = thresholds if thresholds and thresholds.source == "holdout" else None
    image_threshold = found and found.image_threshold
    called = None if image_threshold is None else scores > image_threshold
    return {
        "num_held_out": found.num_images if found else 0,
        "num_added": found.num_added if found else 0,
        "image_threshold": image_threshold,
        "pixel_threshold": found and found.pixel_threshold,
        "kept_false_positive_rate": found and found.kept_rate,
        "possible_false_positive_rate": found and found.possible_rate,
        "num_missed": None if called is None else int((labels & ~called).sum()),
        "num_anomalous": int(labels.sum()),
        "num_false_alarms": None if called is None else int((called & ~labels).sum()),
        "num_normal": int((~labels).sum()),
        **metrics_at(image_threshold, scores, labels),
    }


def judge_again(place: Evaluation, thresholds: Thresholds) -> None:
    """Write results.json and the figures of an evaluation anew, with other thresholds.

    Nothing is scored again. Without an evaluation, nothing is written.
    """
    row, evaluated = read_json(place.results), gallery.read_evaluation(place.shown)
    if row and evaluated:
        row |= _by_thresholds(thresholds, evaluated.scores, evaluated.labels)
        figures.write_figures(place, row)
        write_json(place.results, row)


def write_summaries(workdir: Path) -> str:
    """Write the tables and the page of all results in `workdir`; return the tables.

    Only the first of several processes writes; the others return an empty text.
    """
    if not hosts.is_first():
        return ""
    with held(Workdir(workdir).locks / ".summaries", wait=True):
        found = read_results(workdir)
        text = tables.write_results(workdir, found)
        page.write_page(workdir, found)
    return text
