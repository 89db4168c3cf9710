"""A whole run: train and evaluate every category and seed, and write what came out."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rd_jax import checkpoint, hosts, report, results
from rd_jax.calibration import Calibration, calibrate
from rd_jax.config import Config, as_dict, compute_dtype, validate
from rd_jax.data import Split
from rd_jax.errors import UserError
from rd_jax.evaluate import Scorer, score_images
from rd_jax.evaluate_run import evaluate_split, evaluate_trained, write_summaries
from rd_jax.interruption import Interrupted, deferred
from rd_jax.programs import Programs, compile_programs
from rd_jax.progress import Clock, followed
from rd_jax.resume import check_same_training, initial_state, moved_aside, trainings
from rd_jax.splits import check_splits, load_splits
from rd_jax.task import Task, diverging_as_user_error
from rd_jax.tensorboard import check_tensorboard, event_writer
from rd_jax.train import (
    TrainState,
    holdout_indices,
    steps_per_dispatch,
    training,
)
from rd_jax.weights import LoadedTeacher, teacher_of

logger = logging.getLogger(__name__)

_MOST_CALIBRATION_IMAGES = 1000  # so that their maps fit into memory


def train(config: Config, workdir: Path, restart: bool = False) -> str:
    """Trains and evaluates the configured categories; returns the table as Markdown.

    A training that `workdir` holds a checkpoint of goes on from there, unless `restart` moves it
    aside; what is finished and evaluated already is left as it is. Before the first step all
    images are decoded and all checkpoints compared with the config. Raises UserError for what the
    user can mend, Interrupted after a signal.
    """
    validate(config, jax.device_count())
    if config.rd4ad_checkpoint:
        raise UserError("config.rd4ad_checkpoint can only be evaluated: add --mode eval")
    if config.tensorboard:
        check_tensorboard()
    check_splits(config)
    workdir.mkdir(parents=True, exist_ok=True)
    teacher = teacher_of(config)
    _check_same_teacher(teacher)
    compiler = ThreadPoolExecutor(1)
    try:
        programs = compile_programs(compiler, config, teacher)
        tasks = []
        for split in load_splits(config):
            folder = workdir / split.name
            if restart:
                _start_anew(folder)
            for own, path in trainings(config, folder):
                holdout_indices(own, len(split.train))
                tasks.append(Task(own, split, path))
            check_same_training(config, split.train_sha256, teacher, folder)
        for task in tasks:
            _train_and_evaluate(task, teacher, programs, workdir)
    finally:
        compiler.shutdown(wait=False, cancel_futures=True)
    return write_summaries(workdir)


def _train_and_evaluate(
    task: Task, teacher: LoadedTeacher, programs: Programs, workdir: Path
) -> None:
    try:
        trained = _train(task, teacher, programs)
        scorer = programs.scorer.result
        evaluate_trained(task.config, task.split, teacher, trained, scorer, task.folder)
    except UserError:
        if results.read_results(workdir):
            write_summaries(workdir)  # of what was finished before
        raise


def _check_same_teacher(teacher: LoadedTeacher) -> None:
    """Raises UserError if several processes loaded different weights."""
    own = int(teacher.sha256[:7], 16)
    if not hosts.all_agree(hosts.as_the_first(own) == own):
        raise UserError(
            f"the processes loaded different teacher weights (here {teacher.weights}, sha256 "
            f"{teacher.sha256[:12]}...): set --config.teacher_weights to a file that all see"
        )


def _start_anew(folder: Path) -> None:
    def move() -> None:
        if folder.exists() and hosts.is_first():
            kept = moved_aside(folder, folder.parent / f"replaced-{datetime.now():%Y%m%d-%H%M%S}")
            logger.warning("%s: starting anew; what was there is kept in %s", folder.name, kept)

    hosts.together(move)


def _train(task: Task, teacher: LoadedTeacher, programs: Programs) -> checkpoint.Checkpoint:
    """Trains to the last step, from the latest good checkpoint if there is one."""
    config, split, folder = task.config, task.split, task.folder
    folder.mkdir(parents=True, exist_ok=True)
    last_step = task.steps_until(config.num_epochs)
    state, timing = initial_state(config, folder, last_step)
    first_step = int(state.step)
    if first_step == last_step:
        logger.info("%s: trained already, step %d of %d", task.name, first_step, last_step)
        return checkpoint.load_trained(folder)
    evaluate_at = task.steps_every(config.eval_every_epochs)
    save_at = task.steps_every(config.checkpoint_every_epochs) | {last_step}
    log = folder / "metrics.jsonl"
    if hosts.is_first():
        report.drop_rows_after(log, first_step)
    logger.info(
        "%s: %d images, steps %d to %d, teacher %s (%s)",
        *(task.name, len(split.train), first_step, last_step, config.backbone, teacher.weights),
    )
    trained_on, _ = holdout_indices(config, len(split.train))
    dispatches = training(
        config,
        programs.train_steps.result(),
        steps_per_dispatch(),
        teacher.variables,
        split.train,
        state,
        pause_at=sorted(evaluate_at | save_at),
        chosen=trained_on,
    )
    clock = Clock(timing)

    def write_row(row: Mapping[str, Any]) -> None:
        if hosts.is_first():
            report.append_row(log, row)
            write_event(row)

    def save_checkpoint(state: TrainState, step: int, calibration: Calibration | None) -> None:
        host_state = jax.device_get(state)
        metadata = {
            "config": as_dict(config),
            "teacher_weights": teacher.weights,
            "teacher_sha256": teacher.sha256,
            "train_sha256": split.train_sha256,
            "last_step": last_step,
            "dtype": jnp.dtype(compute_dtype(config)).name,
            "calibration": calibration and calibration._asdict(),
            "timing": clock.timing(step, config.batch_size),
        }
        save(step, host_state.student_variables, host_state.opt_state, metadata)

    with deferred() as should_stop:
        with (
            diverging_as_user_error(task, trained_on),
            _events(config, folder) as write_event,
            checkpoint.writer(folder / checkpoint.FOLDER) as save,
        ):
            for state, step, stops in followed(
                dispatches,
                write_row,
                task.name,
                first_step,
                last_step,
                config.batch_size,
                config.log_every_steps,
                evaluate_at | save_at,
                should_stop,
            ):
                clock.first_dispatch(state, step)
                calibration = None
                if step in evaluate_at or step == last_step:
                    with clock.stopped():
                        variables = jax.device_get(state.student_variables)
                        scorer = programs.scorer.result()
                        if step in evaluate_at:
                            figures = evaluate_split(config, split, teacher, variables, scorer)
                            write_row({"step": step, **figures})
                        else:
                            calibration = _calibration(config, split, teacher, variables, scorer)
                if step in save_at or stops:
                    save_checkpoint(state, step, calibration)
                if stops and step < last_step:
                    break
        is_stopped = should_stop()  # also by a signal since the last step
    if is_stopped:
        raise Interrupted(f"interrupted: {task.name} is saved at step {step} of {last_step}")
    return checkpoint.load_trained(folder)


def _events(
    config: Config, folder: Path
) -> AbstractContextManager[Callable[[Mapping[str, Any]], None]]:
    """A function that writes a row's numbers for TensorBoard, if it is asked for."""
    if config.tensorboard and hosts.is_first():
        return event_writer(folder / "tensorboard")
    return nullcontext(lambda _: None)


def _calibration(
    config: Config, split: Split, teacher: LoadedTeacher, variables: Any, scorer: Scorer
) -> Calibration:
    """What the held-out images score; without a hold-out, those that were trained on."""
    trained_on, held_out = holdout_indices(config, len(split.train))
    chosen = held_out if len(held_out) else trained_on
    spread = np.linspace(0, len(chosen) - 1, min(len(chosen), _MOST_CALIBRATION_IMAGES))
    images = split.train[chosen[spread.astype(int)]]
    maps, scores = score_images(scorer, teacher.variables, variables, images, config.batch_size)
    return calibrate(maps, scores, config.false_positive_rate, is_holdout=len(held_out) > 0)
