"""Evaluating what was trained, here or by the authors' code, and writing what came out."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import jax

from rd_jax.config import FIELDS, Config, Depends, as_dict, override, validate
from rd_jax.data import Split
from rd_jax.data.splits import (
    check_apart,
    check_splits,
    chosen_name,
    load_split,
    named,
    sha256_of,
    split_name,
)
from rd_jax.method.calibration import Calibration, metrics_at
from rd_jax.method.metrics import metrics_of_scored
from rd_jax.report import gallery, page, tables
from rd_jax.report.promise import promise
from rd_jax.run.build import compute_dtype, scorer_of
from rd_jax.run.scoring import Scorer, score_split
from rd_jax.run.thresholds import (
    calibration_of,
    completed_distances,
    kept_distances,
    missing_dtypes,
)
from rd_jax.run.trained import check_teacher, config_of, hashes_of, parts_of
from rd_jax.store import checkpoint
from rd_jax.store.lock import at_work, claimed, summarising
from rd_jax.store.results import RECORDED, TIMING
from rd_jax.store.rows import read_json, write_json
from rd_jax.store.workdir import (
    JOINT,
    Training,
    Workdir,
    check_category,
    find_trainings,
    training_of,
    trainings_of,
)
from rd_jax.system import hosts
from rd_jax.system.errors import UserError
from rd_jax.system.files import composed, user_path
from rd_jax.weights.teacher import LoadedTeacher, find_teacher, load_rd4ad, teacher_of

logger = logging.getLogger(__name__)


def evaluate_checkpoints(overrides: Mapping[str, Any], name: str, workdir: Path) -> str:
    """Evaluates what `workdir` holds, with its own configs and `overrides`; returns the table.

    `name` is a category or class, or categories between commas, or "" for all. Raises UserError
    if there is no checkpoint, if the teacher is not the one trained with, or if an override is of
    a field that only training could change.
    """
    find = cache(find_teacher)  # categories share it
    load = lru_cache(1)(checkpoint.load_latest)  # as those of one training for all do this
    chosen = _chosen_trainings(workdir, name, overrides.get("seeds", ()))
    with claimed(workdir, chosen) as give_back:
        for training in chosen:
            trained = load(training.checkpoints)
            _evaluate_checkpoint(overrides, find, workdir, training, trained)
            give_back(training)
    return write_summaries(workdir)


def _evaluate_checkpoint(
    overrides: Mapping[str, Any],
    find: Callable[[str, str, bool], LoadedTeacher],
    workdir: Path,
    training: Training,
    trained: checkpoint.Checkpoint,
) -> None:
    config = config_of(trained.metadata)
    for field, value in overrides.items():
        if FIELDS[field].depends & Depends.TRAINED and value != config[field]:
            raise UserError(
                f"config.{field}={value!r}: the checkpoint in {training.folder} was trained "
                f"with {config[field]!r}"
            )
    override(config, overrides)
    teacher = teacher_of(config, find)
    check_teacher(teacher, trained.metadata, training.folder)
    check_apart(config, [training.category], workdir)
    category, load = split_name(config, training.category), partial(load_split, config)
    _, test_sha256 = sha256_of(config, category)
    common = (load, teacher, trained, scorer_of(config), training)
    evaluate_trained(config, category, test_sha256, *common)


def _chosen_trainings(workdir: Path, name: str, seeds: tuple[int, ...]) -> list[Training]:
    """The trainings with a complete checkpoint, of category `name` and these seeds, or of all."""
    there = [t for t in find_trainings(workdir) if not t.trained_in]
    for joint in trainings_of(workdir, JOINT):
        metadata = checkpoint.latest_metadata(joint.checkpoints)
        there += parts_of(joint, metadata) if metadata else []
    names = [composed(n) for n in named(name, (t.category for t in there))] if name else []
    steps = cache(checkpoint.steps)  # categories of one training for all share it
    wanted = [
        training
        for training in there
        if (not names or composed(training.category) in names)
        and (not seeds or training.seed in seeds)
        and steps(training.checkpoints)
    ]
    missing = set(names) - {composed(training.category) for training in wanted}
    if missing or not wanted:
        which = f" of {', '.join(sorted(missing))}" if name else ""
        which += f" with seeds {seeds}" if seeds else ""
        raise UserError(f"no checkpoint{which} in {workdir}: train first, with --mode train")
    return wanted


def evaluate_rd4ad(config: Config, workdir: Path) -> str:
    """Evaluates `config.rd4ad_checkpoint`, a file of the authors' code; returns the table.

    Raises UserError if it cannot be read or does not fit, if the config does not name one
    category, or if `workdir` holds a training of that category.
    """
    validate(config)
    of_one = "config.rd4ad_checkpoint is of one category: set --config.category (or normal_class)"
    if not chosen_name(config):
        raise UserError(of_one)
    if config.seeds:
        raise UserError(f"config.seeds={config.seeds!r}: rd4ad_checkpoint is trained already")
    if config.joint:
        raise UserError("config.joint=True: rd4ad_checkpoint is of one category: leave it out")
    for field in ("bottleneck", "direction"):
        if config[field] != FIELDS[field].default:
            raise UserError(
                f"config.{field}={config[field]!r}: the authors' checkpoints have "
                f"{FIELDS[field].default!r}"
            )
    path = user_path(config.rd4ad_checkpoint)
    variables = load_rd4ad(path, config.backbone)
    name, *others = check_splits(config)
    if others:
        raise UserError(of_one)
    check_apart(config, [name], workdir)
    split = load_split(config, name)
    check_category(split.name)
    for there in (*trainings_of(workdir, split.name), *trainings_of(workdir, JOINT)):
        if there.checkpoints.is_dir():
            raise UserError(f"{there.folder} holds a training: choose another --workdir")
    teacher = teacher_of(config)
    of_training = ("loss", "ema", "seed", "num_epochs", "num_steps", "last_step", *TIMING)
    known = _what_is_evaluated(config, name, split.test_sha256, teacher)
    known |= dict.fromkeys(of_training)
    both, place = (teacher.variables, variables), training_of(workdir, split.name)
    with claimed(workdir, [place]):
        _write(known, config, split, both, scorer_of(config), None, place)
    return write_summaries(workdir)


def evaluate_trained(
    config: Config,
    category: str,
    test_sha256: str,
    load: Callable[[str], Split],
    teacher: LoadedTeacher,
    trained: checkpoint.Checkpoint,
    scorer: Scorer,
    training: Training,
    on_any_device: bool = False,
) -> None:
    """Evaluates a training and writes its results.json, unless the same was evaluated already.

    On these devices or, if that will do, on any. Only what is evaluated is decoded, by `load`.
    """
    saved = trained.metadata
    kept = kept_distances(config, trained, training)
    is_finished = trained.step == saved["last_step"]
    missing = missing_dtypes(config, kept) if is_finished else []
    found = read_json(training.results)
    known = _what_is_evaluated(config, category, test_sha256, teacher) | {
        "num_steps": trained.step,
        "last_step": saved["last_step"],
        **saved["timing"],
    }
    found |= {"device": known["device"]} if on_any_device else {}
    is_done = training.evaluation.exists() and known.items() <= found.items()
    if hosts.as_the_first(is_done and not missing):
        logger.info("%s: evaluated already, in %s", category, training.results)
        return
    split = load(category)
    known["test_sha256"] = split.test_sha256  # files may have changed meanwhile
    if hosts.is_first():
        training.results.unlink(missing_ok=True)  # which says that the other files are there
    both, calibration = (teacher.variables, trained.student_variables), None
    name = composed(category)
    if missing and split.train_sha256 != hashes_of(saved, name).get(name):
        logger.warning(
            "%s: no thresholds, since the training images, or their size, are others than in "
            "training: set --config.data_dir to where those are",
            category,
        )
    elif is_finished:
        parts = (config, split, both, scorer, kept, missing, trained, training)
        calibration = calibration_of(config, completed_distances(*parts), known["dtype"])
        logger.info("%s: %s", category, promise(calibration))
    _write(known, config, split, both, scorer, calibration, training)


def _what_is_evaluated(
    config: Config, category: str, test_sha256: str, teacher: LoadedTeacher
) -> dict[str, Any]:
    """All that the figures depend on besides how far the training is."""
    fields = as_dict(config)
    return {
        "category": category,
        "test_sha256": test_sha256,
        **{name: fields[name] for name in RECORDED},
        "teacher_weights": Path(teacher.weights).name,
        "teacher_sha256": teacher.sha256,
        "rd4ad_checkpoint": Path(config.rd4ad_checkpoint).name,
        "dtype": compute_dtype(config).name,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def _write(
    known: Mapping[str, Any],
    config: Config,
    split: Split,
    variables: tuple[Any, Any],
    scorer: Scorer,
    calibration: Calibration | None,
    training: Training,
) -> None:
    """Evaluates, and writes what the page needs and, when that is there, results.json.

    Of several processes each scores its share, and the first does the rest.
    """
    start = time.perf_counter()
    found, made_of_maps = score_split(scorer, *variables, split, config.batch_size)
    shown = gallery.chosen(split, found.scores, calibration)
    maps = made_of_maps(shown, gallery.small_map)
    if not hosts.is_first():
        return
    thresholds = _thresholds(calibration)
    row = {
        **known,
        **thresholds,
        **metrics_of_scored(found, split.labels),
        **metrics_at(thresholds["image_threshold"], found.scores, split.labels),
        "eval_seconds": time.perf_counter() - start,
    }
    gallery.write_evaluation(training.evaluation, split, found, shown, maps, calibration)
    write_json(training.results, row)


def _thresholds(calibration: Calibration | None) -> dict[str, Any]:
    """What was held out, and the thresholds that it set; without a hold-out none."""
    held_out = calibration if calibration and calibration.source == "holdout" else None
    return {
        "num_held_out": held_out.num_images if held_out else 0,
        "image_threshold": held_out and held_out.image_threshold,
        "pixel_threshold": held_out and held_out.pixel_threshold,
        "kept_false_positive_rate": held_out and held_out.kept_rate,
    }


def write_summaries(workdir: Path) -> str:
    """Writes the tables and the page over all that `workdir` holds; returns the former.

    Of several processes the first does; the others return nothing.
    """
    if not hosts.is_first():
        return ""
    with summarising(Workdir(workdir)):
        return _write_summaries(workdir)


def _write_summaries(workdir: Path) -> str:
    text = tables.write_results(workdir)
    page.write_page(workdir)
    return text


def summarised(workdir: Path, left: Sequence[Sequence[Training]], is_shared: bool) -> str | None:
    """Writes the summaries once nothing is `left`, of each training all that it writes to.

    Returns the table; nothing if others work on all that is left, of whom the last one writes, or
    if one of those that this run `is_shared` with was the last one and wrote; None if there is
    something left that nobody works on any more. Of several processes the first looks.
    """
    run, text, is_over = Workdir(workdir), "", True
    with hosts.together():
        if hosts.is_first():
            with summarising(run):
                working = [at_work(run, places) for places in left]
                is_over = all(working)
                if left and is_over:
                    who = "; ".join(filter(None, working))
                    logger.info("%s; the last one to finish writes the results", who)
                elif is_over and is_shared and _is_summarised(run):
                    logger.info("the results in %s are written, by the last to finish", workdir)
                elif is_over:
                    text = _write_summaries(workdir)
    return text if hosts.as_the_first(is_over) else None


def _is_summarised(run: Workdir) -> bool:
    """Whether the page, which is written last, is of all results that are there."""
    results = [training.results for training in find_trainings(run.folder)]
    times = [path.stat().st_mtime_ns for path in results if path.exists()]
    return run.page.exists() and run.page.stat().st_mtime_ns >= max(times, default=0)
