"""A whole run: train and evaluate every category and seed, and write what came out."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rd_jax.config import Config, as_dict, validate
from rd_jax.data.splits import check_splits, load_splits
from rd_jax.method.calibration import Calibration, calibrate
from rd_jax.method.metrics import metrics_of
from rd_jax.method.train import TrainState
from rd_jax.run.build import compute_dtype
from rd_jax.run.evaluation import evaluate_trained, write_summaries
from rd_jax.run.loop import steps_per_dispatch, training
from rd_jax.run.programs import Programs, compile_programs
from rd_jax.run.progress import Clock, Way, followed
from rd_jax.run.resume import check_same_training, initial_state, planned
from rd_jax.run.scoring import score_images
from rd_jax.run.task import Task, diverging_as_user_error, make_task
from rd_jax.run.tensorboard import check_tensorboard, event_writer
from rd_jax.store import checkpoint, rows
from rd_jax.store.results import read_results
from rd_jax.store.workdir import set_aside
from rd_jax.system import hosts
from rd_jax.system.errors import UserError
from rd_jax.system.interruption import Interrupted, deferred
from rd_jax.weights.teacher import LoadedTeacher, teacher_of

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
            if restart:
                _start_anew(workdir, split.name)
            tasks += [
                make_task(own, split, training)
                for own, training in planned(config, workdir, split.name)
            ]
            check_same_training(config, split.train_sha256, teacher, workdir, split.name)
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
        evaluate_trained(task.config, task.split, teacher, trained, scorer, task.training)
    except UserError:
        if read_results(workdir):
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


def _start_anew(workdir: Path, category: str) -> None:
    with hosts.together():
        kept = set_aside(workdir, category) if hosts.is_first() else None
    if kept:
        logger.warning("%s: starting anew; what was there is kept in %s", category, kept)


def _train(task: Task, teacher: LoadedTeacher, programs: Programs) -> checkpoint.Checkpoint:
    """Trains to the last step, from the latest good checkpoint if there is one."""
    config, place, last_step = task.config, task.training, task.last_step
    place.folder.mkdir(parents=True, exist_ok=True)
    state, timing = initial_state(config, place, last_step)
    first_step = int(state.step)
    if first_step == last_step:
        logger.info("%s: trained already, step %d of %d", task.name, first_step, last_step)
        return checkpoint.load_latest(place.checkpoints)
    evaluate_at = task.steps_every(config.eval_every_epochs)
    save_at = task.steps_every(config.checkpoint_every_epochs) | {last_step}
    if hosts.is_first():
        rows.drop_rows_after(place.metrics, first_step)
    logger.info(
        "%s: %d images, steps %d to %d, teacher %s (%s)",
        *(task.name, len(task.split.train), first_step, last_step, config.backbone),
        teacher.weights,
    )
    dispatches = training(
        programs.train_steps.result(),
        steps_per_dispatch(),
        teacher.variables,
        task.split.train,
        state,
        last_step=last_step,
        batch_size=config.batch_size,
        seed=config.seed,
        pause_at=sorted(evaluate_at | save_at),
        chosen=task.trained_on,
    )
    clock = Clock(timing)
    way = Way(
        *(task.name, first_step, last_step, config.batch_size, config.log_every_steps),
        evaluate_at | save_at,
    )

    def score(state: TrainState, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        variables = teacher.variables, jax.device_get(state.student_variables)
        return score_images(programs.scorer.result(), *variables, images, config.batch_size)

    def evaluate(state: TrainState) -> dict[str, float | None]:
        split = task.split
        return metrics_of(*score(state, split.test), split.labels, split.masks)

    def calibration(state: TrainState) -> Calibration:
        """What the held-out images score; without a hold-out, those that were trained on."""
        chosen = task.held_out if len(task.held_out) else task.trained_on
        spread = np.linspace(0, len(chosen) - 1, min(len(chosen), _MOST_CALIBRATION_IMAGES))
        maps, scores = score(state, task.split.train[chosen[spread.astype(int)]])
        return calibrate(maps, scores, config.false_positive_rate, len(task.held_out) > 0)

    def metadata(step: int, calibration: Calibration | None) -> dict[str, Any]:
        return {
            "config": as_dict(config),
            "teacher_weights": teacher.weights,
            "teacher_sha256": teacher.sha256,
            "train_sha256": task.split.train_sha256,
            "last_step": last_step,
            "dtype": jnp.dtype(compute_dtype(config)).name,
            "calibration": calibration and calibration._asdict(),
            "timing": clock.timing(step, config.batch_size),
        }

    with deferred() as should_stop:
        with (
            diverging_as_user_error(task),
            _row_writer(task) as write_row,
            checkpoint.writer(place.checkpoints) as save,
        ):
            for state, step, stops in followed(dispatches, way, write_row, should_stop):
                clock.first_dispatch(state, step)
                with clock.stopped():
                    if step in evaluate_at:
                        write_row({"step": step, **evaluate(state)})
                    known = calibration(state) if step == last_step else None
                if step in save_at or stops:
                    host = jax.device_get(state)
                    save(step, host.student_variables, host.opt_state, metadata(step, known))
                if stops and step < last_step:
                    break
        is_stopped = should_stop()  # also by a signal since the last step
    if is_stopped:
        raise Interrupted(f"interrupted: {task.name} is saved at step {step} of {last_step}")
    return checkpoint.load_latest(place.checkpoints)


def _row_writer(task: Task) -> AbstractContextManager[Callable[[Mapping[str, Any]], None]]:
    """A function that writes a row of metrics: of several processes, the first one's does."""
    if not hosts.is_first():
        return nullcontext(lambda _: None)
    metrics = task.training.metrics
    if task.config.tensorboard:
        return event_writer(task.training.tensorboard, metrics)
    return nullcontext(lambda row: rows.append_row(metrics, row))
