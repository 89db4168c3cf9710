"""Evaluating what was trained, here or by the authors' code, and writing what came out."""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rd_jax import checkpoint, gallery, hosts, page, report, results
from rd_jax.calibration import Calibration
from rd_jax.config import Config, as_dict, compute_dtype, validate
from rd_jax.data import Split
from rd_jax.errors import UserError
from rd_jax.evaluate import (
    SCORER_FIELDS,
    Scorer,
    evaluate,
    make_scorer,
    metrics_at,
    metrics_of,
    score_images,
)
from rd_jax.resume import EVALUATION_FIELDS, check_teacher
from rd_jax.splits import chosen_name, load_split
from rd_jax.weights import LoadedTeacher, load_rd4ad, teacher_of

logger = logging.getLogger(__name__)


def evaluate_checkpoints(overrides: Mapping[str, Any], name: str, workdir: Path) -> str:
    """Evaluates what `workdir` holds, with its own configs and `overrides`; returns the table.

    `name` is a category or class, or "" for all. Raises UserError if there is no checkpoint, if
    the teacher is not the one trained with, or if an override is of a field that only training
    could change.
    """
    teachers: dict[tuple[str, ...], LoadedTeacher] = {}
    scorers: dict[str, Scorer] = {}
    for folder in _trained_folders(workdir, name, overrides.get("seeds", ())):
        trained = checkpoint.load_trained(folder)
        config = checkpoint.config_of(trained.metadata)
        for field, value in overrides.items():
            if field not in EVALUATION_FIELDS and value != config[field]:
                raise UserError(
                    f"config.{field}={value!r}: the checkpoint in {folder} was trained with "
                    f"{config[field]!r}"
                )
            with config.ignore_type():
                config[field] = value
        validate(config)
        source = (config.backbone, config.teacher_weights, config.bottleneck)
        teachers[source] = teachers.get(source) or teacher_of(config)
        check_teacher(teachers[source], trained.metadata, folder)
        scored_by = repr([config[field] for field in SCORER_FIELDS])
        scorers[scored_by] = scorers.get(scored_by) or make_scorer(config)
        split = load_split(config, folder.relative_to(workdir).parts[0])
        scorer = partial(scorers.__getitem__, scored_by)
        evaluate_trained(config, split, teachers[source], trained, scorer, folder)
    return write_summaries(workdir)


def evaluate_rd4ad(config: Config, workdir: Path) -> str:
    """Evaluates `config.rd4ad_checkpoint`, a file of the authors' code; returns the table.

    Raises UserError if it cannot be read or does not fit, if the config does not name one
    category, or if `workdir` holds a training of that category.
    """
    validate(config)
    if not chosen_name(config):
        raise UserError(
            "config.rd4ad_checkpoint is of one category: set --config.category (or normal_class)"
        )
    if config.seeds:
        raise UserError(f"config.seeds={config.seeds!r}: rd4ad_checkpoint is trained already")
    if config.bottleneck != "mff_oce":
        raise UserError(
            f"config.bottleneck={config.bottleneck!r}: the authors' checkpoints have 'mff_oce'"
        )
    path = Path(os.path.expanduser(config.rd4ad_checkpoint))
    variables = load_rd4ad(path, config.backbone)
    split = load_split(config, chosen_name(config))
    folder = workdir / split.name
    if list(folder.glob(checkpoint.FOLDER)) + list(folder.glob(f"seed_*/{checkpoint.FOLDER}")):
        raise UserError(f"{folder} holds a training: choose another --workdir")
    facts = dict.fromkeys(("loss", "seed", "num_epochs", "num_steps", "last_step"))
    timing = dict.fromkeys(("train_seconds", "images_per_second"))
    teacher, scorer = teacher_of(config), make_scorer(config)
    _write(config, split, teacher, variables, scorer, folder, {**facts, **timing}, None)
    return write_summaries(workdir)


def evaluate_split(
    config: Config,
    split: Split,
    teacher: LoadedTeacher,
    student_variables: Any,
    scorer: Scorer,
) -> dict[str, float | None]:
    """The metrics of a split's test images."""
    return evaluate(
        scorer,
        teacher.variables,
        student_variables,
        split.test,
        split.labels,
        split.masks,
        config.batch_size,
    )


def evaluate_trained(
    config: Config,
    split: Split,
    teacher: LoadedTeacher,
    trained: checkpoint.Checkpoint,
    scorer: Callable[[], Scorer],
    folder: Path,
) -> None:
    """Evaluates a training and writes its results.json, unless the same was evaluated already."""
    facts = {
        "loss": config.loss,
        "seed": config.seed,
        "num_epochs": config.num_epochs,
        "num_steps": trained.step,
        "last_step": trained.metadata["last_step"],
        **trained.metadata["timing"],
    }
    calibration = _calibration(config, trained.metadata)
    expected = _what_was_evaluated(config, split, teacher, facts, calibration)
    is_done = (folder / gallery.FILE).exists() and expected.items() <= _read_row(folder).items()
    if hosts.as_the_first(is_done):
        logger.info("%s: evaluated already, in %s", split.name, folder / results.FILE)
        return
    variables = trained.student_variables
    _write(config, split, teacher, variables, scorer(), folder, facts, calibration)


def write_summaries(workdir: Path) -> str:
    """Writes the tables and the page over all that `workdir` holds; returns the former.

    Of several processes the first does; the others return nothing.
    """
    if not hosts.is_first():
        return ""
    text = report.write_results(workdir)
    page.write_page(workdir)
    return text


def _calibration(config: Config, saved: Mapping[str, Any]) -> Calibration | None:
    """What the training kept, if it is finished and scores as it did then."""
    fields = {*SCORER_FIELDS, "image_size"} - {"dtype"}
    now, then = as_dict(config), saved["config"]
    is_same_dtype = jnp.dtype(compute_dtype(config)).name == saved["dtype"]
    scores_alike = is_same_dtype and all(now[name] == then[name] for name in fields)
    if saved["calibration"] is None or not scores_alike:
        return None
    return Calibration(**saved["calibration"])


def _what_was_evaluated(
    config: Config,
    split: Split,
    teacher: LoadedTeacher,
    facts_of_training: Mapping[str, Any],
    calibration: Calibration | None,
) -> dict[str, Any]:
    """All that the figures depend on, and how they came about."""
    has_threshold = calibration is not None and calibration.source == "holdout"
    return {
        "category": split.name,
        "test_sha256": split.test_sha256,
        "dataset": config.dataset,
        "backbone": config.backbone,
        "teacher_weights": Path(teacher.weights).name,
        "teacher_sha256": teacher.sha256,
        "rd4ad_checkpoint": Path(config.rd4ad_checkpoint).name,
        "bottleneck": config.bottleneck,
        "scales": list(config.scales),
        "image_size": config.image_size,
        "image_score": config.image_score,
        "blur_sigma": config.blur_sigma,
        "dtype": jnp.dtype(compute_dtype(config)).name,
        "holdout": config.holdout,
        "num_held_out": calibration.num_images if calibration and has_threshold else 0,
        "false_positive_rate": config.false_positive_rate if has_threshold else None,
        "image_threshold": calibration and calibration.image_threshold,
        "pixel_threshold": calibration and calibration.pixel_threshold,
        **facts_of_training,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def _read_row(folder: Path) -> dict[str, Any]:
    """A training's results.json; nothing if there is none that can be read."""
    try:
        return json.loads((folder / results.FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write(
    config: Config,
    split: Split,
    teacher: LoadedTeacher,
    student_variables: Any,
    scorer: Scorer,
    folder: Path,
    facts_of_training: Mapping[str, Any],
    calibration: Calibration | None,
) -> None:
    """Evaluates, and writes what the page needs and, when that is there, results.json.

    Of several processes each scores its share, and the first does the rest.
    """
    start = time.perf_counter()
    maps, scores = score_images(
        scorer, teacher.variables, student_variables, split.test, config.batch_size
    )
    if not hosts.is_first():
        return
    metrics = metrics_of(maps, scores, split.labels, split.masks)
    threshold = calibration and calibration.image_threshold
    row = {
        **_what_was_evaluated(config, split, teacher, facts_of_training, calibration),
        **metrics,
        **metrics_at(threshold, scores, split.labels),
        "eval_seconds": time.perf_counter() - start,
    }
    (folder / results.FILE).unlink(missing_ok=True)  # which says that the other file is there
    gallery.write_evaluation(folder, split, maps, scores, calibration)
    report.write_json(folder / results.FILE, row)


def _trained_folders(workdir: Path, name: str, seeds: tuple[int, ...]) -> list[Path]:
    """The folders that hold a training, of category `name` and these seeds, or of all."""
    wanted = [
        folder
        for folder in checkpoint.trained_folders(workdir)
        if name in ("", folder.relative_to(workdir).parts[0])
        and (not seeds or folder.name in {f"seed_{seed}" for seed in seeds})
    ]
    if not wanted:
        which = f" of {name}" if name else ""
        which += f" with seeds {seeds}" if seeds else ""
        raise UserError(f"no checkpoint{which} in {workdir}: train first, with --mode train")
    return wanted
