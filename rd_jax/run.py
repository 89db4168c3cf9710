"""Whole runs: train or evaluate every category, and write what came out."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rd_jax import checkpoint, report
from rd_jax.config import Config, as_dict, compute_dtype, validate
from rd_jax.data import images, mvtec, synthetic
from rd_jax.errors import UserError
from rd_jax.evaluate import Scorer, evaluate, make_scorer
from rd_jax.progress import Clock, followed
from rd_jax.resume import EVALUATION_FIELDS, check_same_training, check_teacher, initial_state
from rd_jax.train import (
    Metrics,
    TrainState,
    make_parallel_train_steps,
    steps_per_dispatch,
    steps_until,
    training,
)
from rd_jax.weights import LoadedTeacher, find_teacher

logger = logging.getLogger(__name__)


class Programs(NamedTuple):
    """What is compiled once for all categories of a run."""

    parallel_train_steps: Callable[..., tuple[TrainState, Metrics]]
    max_steps: int
    scorer: Scorer


def train(config: Config, workdir: Path) -> str:
    """Trains and evaluates the configured categories; returns the table as Markdown.

    A category that `workdir` holds a checkpoint of goes on from there. Before the first step all
    images are decoded and all checkpoints compared with the config. Raises UserError for what the
    user can mend.
    """
    validate(config, jax.device_count())
    workdir.mkdir(parents=True, exist_ok=True)
    data_dir = _data_dir(config)
    names = [config.category] if config.category else mvtec.find_categories(data_dir)
    teacher = find_teacher(config.backbone, config.teacher_weights)
    splits = [mvtec.load_category(data_dir, name, config.image_size) for name in names]
    for split in splits:
        saved = checkpoint.load_metadata(workdir / split.name / checkpoint.FOLDER)
        if saved is not None:
            check_same_training(config, split.train_sha256, teacher, saved, workdir / split.name)
    max_steps = steps_per_dispatch()
    programs = Programs(
        make_parallel_train_steps(config, max_steps), max_steps, make_scorer(config)
    )
    for split in splits:
        trained = _train_category(config, split, teacher, programs, workdir)
        _evaluate_category(config, split, teacher, trained, programs.scorer, workdir)
    return report.write_results(workdir)


def evaluate_checkpoints(overrides: Mapping[str, Any], category: str, workdir: Path) -> str:
    """Evaluates what `workdir` holds, with its own configs and `overrides`; returns the table.

    Raises UserError if there is no checkpoint, if the teacher is not the one trained with, or if
    an override is of a field that only training could change.
    """
    teachers: dict[tuple[str, str], LoadedTeacher] = {}
    for name in [category] if category else _trained_categories(workdir):
        trained = checkpoint.load_trained(workdir, name)
        config = checkpoint.config_of(trained.metadata)
        for field, value in overrides.items():
            if field not in EVALUATION_FIELDS and value != config[field]:
                raise UserError(
                    f"config.{field}={value!r}: the checkpoint in {workdir / name} was trained "
                    f"with {config[field]!r}"
                )
            with config.ignore_type():
                config[field] = value
        validate(config)
        source = (config.backbone, config.teacher_weights)
        teachers[source] = teachers.get(source) or find_teacher(*source)
        check_teacher(teachers[source], trained.metadata, workdir / name)
        split = mvtec.load_category(_data_dir(config), name, config.image_size)
        _evaluate_category(config, split, teachers[source], trained, make_scorer(config), workdir)
    return report.write_results(workdir)


def _data_dir(config: Config) -> Path:
    if config.data_dir == "synthetic":
        return synthetic.cached_data_dir(images.cache_folder())
    return Path(config.data_dir).expanduser()


def _trained_categories(workdir: Path) -> list[str]:
    folders = sorted(workdir.glob(f"*/{checkpoint.FOLDER}"))
    names = [path.parent.name for path in folders if checkpoint.load_metadata(path) is not None]
    if not names:
        raise UserError(f"no checkpoint in {workdir}: train first, with --mode train")
    return names


def _train_category(
    config: Config,
    split: mvtec.Split,
    teacher: LoadedTeacher,
    programs: Programs,
    workdir: Path,
) -> checkpoint.Checkpoint:
    """Trains to the last step, from the latest checkpoint if there is one."""
    folder = workdir / split.name
    folder.mkdir(exist_ok=True)
    state, timing = initial_state(config, folder)
    first_step, num_images = int(state.step), len(split.train)
    last_step = steps_until(config.num_epochs, num_images, config.batch_size)

    def steps_every(epochs: int) -> set[int]:
        multiples = range(epochs, config.num_epochs, epochs) if epochs else ()
        return {steps_until(epoch, num_images, config.batch_size) for epoch in multiples}

    evaluate_at = steps_every(config.eval_every_epochs)
    save_at = steps_every(config.checkpoint_every_epochs) | {last_step}
    pause_at = evaluate_at | save_at
    log = folder / "metrics.jsonl"
    report.drop_rows_after(log, first_step)
    logger.info(
        "%s: %d images, steps %d to %d, teacher %s (%s)",
        *(split.name, num_images, first_step, last_step, config.backbone, teacher.weights),
    )
    dispatches = training(
        config,
        programs.parallel_train_steps,
        programs.max_steps,
        teacher.variables,
        split.train,
        state,
        pause_at=sorted(pause_at),
    )
    clock = Clock(timing)
    for state, step in followed(
        dispatches,
        log,
        split.name,
        first_step,
        last_step,
        config.batch_size,
        config.log_every_steps,
        pause_at,
    ):
        clock.first_dispatch(state, step)
        if step in save_at:
            host_state = jax.device_get(state)
            metadata = {
                "config": as_dict(config),
                "teacher_weights": teacher.weights,
                "teacher_sha256": teacher.sha256,
                "train_sha256": split.train_sha256,
                "last_step": last_step,
                "timing": clock.timing(step, config.batch_size),
            }
            checkpoint.save(
                folder / checkpoint.FOLDER,
                step,
                host_state.student_variables,
                host_state.opt_state,
                metadata,
            )
        if step in evaluate_at:
            with clock.stopped():
                variables = jax.device_get(state.student_variables)
                figures = _evaluate(config, split, teacher, variables, programs.scorer)
                report.append_row(log, {"step": step, **figures})
    return checkpoint.load_trained(workdir, split.name)


def _evaluate(
    config: Config,
    split: mvtec.Split,
    teacher: LoadedTeacher,
    student_variables: Any,
    scorer: Scorer,
) -> dict[str, float | None]:
    return evaluate(
        scorer,
        teacher.variables,
        student_variables,
        split.test,
        split.labels,
        split.masks,
        config.batch_size,
    )


def _evaluate_category(
    config: Config,
    split: mvtec.Split,
    teacher: LoadedTeacher,
    trained: checkpoint.Checkpoint,
    scorer: Scorer,
    workdir: Path,
) -> None:
    """Evaluates a trained category and writes its results.json."""
    start = time.perf_counter()
    metrics = _evaluate(config, split, teacher, trained.student_variables, scorer)
    row = {
        "category": split.name,
        **metrics,
        "backbone": config.backbone,
        "teacher_weights": Path(teacher.weights).name,
        "teacher_sha256": teacher.sha256,
        "bottleneck": config.bottleneck,
        "scales": list(config.scales),
        "loss": config.loss,
        "image_size": config.image_size,
        "dtype": jnp.dtype(compute_dtype(config)).name,
        "seed": config.seed,
        "num_epochs": config.num_epochs,
        "num_steps": trained.step,
        "last_step": trained.metadata["last_step"],
        **trained.metadata["timing"],
        "eval_seconds": time.perf_counter() - start,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    report.write_json(workdir / split.name / report.CATEGORY_RESULTS, row)
