"""A whole run: train and evaluate every category and seed, and write what came out."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from rd_jax import checkpoint, report
from rd_jax.config import Config, as_dict, validate
from rd_jax.data import Split
from rd_jax.errors import UserError
from rd_jax.evaluate import Scorer, make_scorer
from rd_jax.evaluate_run import evaluate_split, evaluate_trained, teacher_of
from rd_jax.progress import Clock, followed
from rd_jax.resume import check_same_training, initial_state, trainings
from rd_jax.splits import load_splits
from rd_jax.train import (
    Metrics,
    TrainState,
    make_parallel_train_steps,
    steps_per_dispatch,
    steps_until,
    training,
)
from rd_jax.weights import LoadedTeacher

logger = logging.getLogger(__name__)


class Programs(NamedTuple):
    """What is compiled once for all trainings of a run."""

    parallel_train_steps: Callable[..., tuple[TrainState, Metrics]]
    max_steps: int
    scorer: Scorer


def train(config: Config, workdir: Path) -> str:
    """Trains and evaluates the configured categories; returns the table as Markdown.

    A training that `workdir` holds a checkpoint of goes on from there. Before the first step all
    images are decoded and all checkpoints compared with the config. Raises UserError for what the
    user can mend.
    """
    validate(config, jax.device_count())
    if config.rd4ad_checkpoint:
        raise UserError("config.rd4ad_checkpoint can only be evaluated: add --mode eval")
    workdir.mkdir(parents=True, exist_ok=True)
    teacher = teacher_of(config)
    todo = []
    for split in load_splits(config):
        folder = workdir / split.name
        todo += [(own, split, path) for own, path in trainings(config, folder)]
        check_same_training(config, split.train_sha256, teacher, folder)
    max_steps = steps_per_dispatch()
    programs = Programs(
        make_parallel_train_steps(config, max_steps), max_steps, make_scorer(config)
    )
    for seed_config, split, folder in todo:
        trained = _train(seed_config, split, teacher, programs, folder)
        evaluate_trained(seed_config, split, teacher, trained, programs.scorer, folder)
    return report.write_results(workdir)


def _train(
    config: Config,
    split: Split,
    teacher: LoadedTeacher,
    programs: Programs,
    folder: Path,
) -> checkpoint.Checkpoint:
    """Trains to the last step, from the latest checkpoint in `folder` if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    state, timing = initial_state(config, folder)
    first_step, num_images = int(state.step), len(split.train)
    last_step = steps_until(config.num_epochs, num_images, config.batch_size)
    name = f"{split.name}, seed {config.seed}" if config.seeds else split.name

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
        *(name, num_images, first_step, last_step, config.backbone, teacher.weights),
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
        name,
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
                figures = evaluate_split(config, split, teacher, variables, programs.scorer)
                report.append_row(log, {"step": step, **figures})
    return checkpoint.load_trained(folder)
