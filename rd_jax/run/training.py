"""Run everything: train and evaluate every category and seed, and write the results."""

import importlib.util
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax

from rd_jax.config import Config, validate
from rd_jax.data import Joined, Split
from rd_jax.data.sources import find_categories
from rd_jax.method.loss import LOSSES
from rd_jax.method.metrics import metrics_of_scored
from rd_jax.method.train import TrainState
from rd_jax.run.eval_mode import check_apart
from rd_jax.run.evaluation import evaluate, write_summaries
from rd_jax.run.plan import (
    Given,
    Plan,
    chosen_name,
    planned,
    source_of,
    teacher_of,
)
from rd_jax.run.programs import Kept, encoder_of, kept_of, steps_of, train_steps_of
from rd_jax.run.progress import Clock, DivergedError, Timing, followed, row_writer
from rd_jax.run.resume import (
    begin,
    check_layout,
    check_same_training,
    divergence,
    names_to_replace,
)
from rd_jax.run.scoring import score_split
from rd_jax.run.trained import Trained, bound_scorer, facts_of
from rd_jax.store import checkpoint
from rd_jax.store.checkpoint import Checkpoint
from rd_jax.store.lock import locked, set_aside
from rd_jax.store.results import means, read_results
from rd_jax.store.rows import Row, drop_rows_after
from rd_jax.store.workdir import Workdir
from rd_jax.system import hosts
from rd_jax.system.errors import UserError
from rd_jax.system.interruption import Interrupted, deferred
from rd_jax.weights.teacher import LoadedTeacher

logger = logging.getLogger(__name__)


def train(
    config: Config,
    workdir: Path,
    restart: bool = False,
    given: Given = Given(),  # noqa: B008 (it is frozen)
) -> str:
    """Train and evaluate the configured categories, each alone or all together.

    Return the table as Markdown. The same command may run several times at once: each run takes
    the trainings that no other one works on.

    If `workdir` holds a checkpoint of a training, it goes on from there, unless `restart` moves it
    aside. A finished and evaluated training stays as it is. `given` replaces values of the config.
    Before the first step, all images are found, and all checkpoints are compared with the config.
    Raise UserError for mistakes that the user can mend, Interrupted after a signal.
    """
    _check_config(config, given)
    found = given.categories or find_categories(source_of(config), chosen_name(config))
    check_apart(found, workdir)
    categories = [replace(category, load=cache(category.load)) for category in found]
    run = Workdir(workdir)
    plans = planned(config, run, categories, given)
    run.make([place for plan in plans for place in (plan.place, *plan.evaluations)])
    replaced = names_to_replace(plans, run) if restart else []
    check_layout(plans, run, replaced)
    teacher = teacher_of(config)
    if hosts.is_first():
        for name, path in set_aside(workdir, replaced).items():
            logger.warning("%s: starting anew; what was there is kept in %s", name, path)
    # All processes wait here, so that none reads folders while another moves them.
    hosts.check_same(restart, "some processes were started with --restart, others without it")
    for plan in plans:
        check_same_training(plan, teacher, run)
    try:
        for plan in _free(plans):
            is_finished = check_same_training(plan, teacher, run)
            _train_and_evaluate(plan, teacher, is_finished)
    except UserError:
        if read_results(workdir):
            write_summaries(workdir)  # of the trainings finished before
        raise
    return write_summaries(workdir)


def _check_config(config: Config, given: Given) -> None:
    validate(config, jax.device_count())
    if config.loss not in LOSSES and given.loss is None:
        raise UserError(f"config.loss={config.loss!r}: only rd_jax.fit(loss=...) can train with it")
    if config.rd4ad_checkpoint:
        raise UserError("config.rd4ad_checkpoint can only be evaluated: add --mode eval")
    if config.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise UserError("config.tensorboard=True needs pip install tensorboardX")


def _free(plans: Sequence[Plan]) -> Iterator[Plan]:
    """Yield the trainings that no other process works on, each locked until the next one.

    After each training, look again at those that other processes had.
    """
    left = list(plans)
    while left:
        for plan in left:
            with locked(plan.place) if hosts.is_first() else nullcontext(True) as is_free:
                if is_free:
                    yield plan
                    break
        else:
            names = ", ".join(plan.name for plan in left)
            if jax.process_count() > 1:
                raise UserError(f"another process works on {names}: wait for it to end")
            logger.info("other processes work on %s", names)
            return
        left.remove(plan)


def _train_and_evaluate(plan: Plan, teacher: LoadedTeacher, is_finished: bool) -> None:
    place, kept = plan.place, kept_of(plan)
    with ThreadPoolExecutor(2) as compiler:
        if not is_finished:
            # XLA compiles without Python's lock, so Python decodes images meanwhile.
            compiler.submit(train_steps_of, plan, kept)
            if kept != "nothing":
                compiler.submit(encoder_of, plan, kept)
        splits = [category.load() for category in plan.categories]
        begun = begin(plan, kept)
    if [len(split.train) for split in splits] != [c.num_train for c in plan.categories]:
        raise UserError(
            f"{plan.name}: training images came or went since this run began: start it again"
        )
    if isinstance(begun, Checkpoint):
        last = begun
        logger.info("%s: trained already, step %d of %d", plan.name, last.step, last.step)
    else:
        try:
            last = _train(plan, kept, splits, teacher, *begun)
        except DivergedError as error:  # what was being saved is complete now
            raise UserError(divergence(plan, splits, *error.args)) from error
    if hosts.is_first():
        checkpoint.keep_latest(place.checkpoints)
    trained = Trained(place, plan.config, last, teacher)
    for split, evaluation in zip(splits, plan.evaluations, strict=True):
        evaluate(trained, split, evaluation, on_any_device=True)


def _train(
    plan: Plan,
    kept: Kept,
    splits: Sequence[Split],
    teacher: LoadedTeacher,
    state: TrainState,
    timing: Timing,
) -> Checkpoint:
    """Train from `state` to the last step. Raise Interrupted, with the saved step, on a signal."""
    config, place, last_step = plan.config, plan.place, plan.last_step
    first_step = int(state.step)
    evaluate_at = plan.steps_every(config.eval_every_epochs)
    save_at = plan.steps_every(config.checkpoint_every_epochs) | {last_step}
    pauses = evaluate_at | save_at
    metadata = facts_of(config, teacher, splits, last_step)
    _check_same_everywhere(plan, metadata, first_step)
    if hosts.is_first():
        drop_rows_after(place.metrics, first_step)
        for evaluation in plan.evaluations:
            evaluation.results.unlink(missing_ok=True)  # they are of fewer steps
    num_images = sum(len(split.train) for split in splits)
    logger.info(
        "%s: %d images, steps %d to %d, %d images held out, teacher %s (%s), on the devices: %s",
        *(plan.name, num_images, first_step, last_step, num_images - len(plan.trained_on)),
        *(config.backbone, teacher.weights, kept),
    )
    clock, saved = Clock(timing), None
    events = place.tensorboard if config.tensorboard else None
    images = Joined([split.train for split in splits])
    steps = steps_of(plan, kept, images, teacher.variables, state, pauses)
    with _stop_requests() as should_stop:
        with (
            row_writer(place.metrics, events) as write_row,
            checkpoint.writer(place.checkpoints) as save,
        ):
            for state, step, stops in followed(
                steps, plan, first_step, pauses, write_row, should_stop
            ):
                clock.first_dispatch(state, step)
                with clock.stopped():
                    if step in evaluate_at:
                        write_row({"step": step, **_figures(plan, splits, teacher, state)})
                if step in save_at or stops:
                    timing = clock.timing(step, config.batch_size)
                    facts = metadata | {"timing": timing, "kept": kept}
                    rest = state.rest if step < last_step or config.keep_optimizer else None
                    student, rest = jax.device_get((state.student_variables, rest))
                    saved = Checkpoint(step, student, facts, save(step, student, rest, facts))
                if stops and step < last_step:
                    break
        # A signal may have come since the last step.
        if saved is None or saved.step < last_step or (jax.process_count() == 1 and should_stop()):
            raise Interrupted(f"interrupted: {plan.name} is saved at step {step} of {last_step}")
    return saved


def _figures(plan: Plan, splits: Sequence[Split], teacher: LoadedTeacher, state: TrainState) -> Row:
    """Return the metrics of a student in training, averaged over the categories."""
    score = bound_scorer(plan.config, teacher, jax.device_get(state.student_variables))
    rows = []
    for split in splits:
        scored, _ = score_split(score, split, plan.config.batch_size)
        rows.append(metrics_of_scored(scored, split.labels))
    return means(rows)


def _check_same_everywhere(plan: Plan, metadata: dict, first_step: int) -> None:
    """Raise UserError if the processes of a run would not train the same."""
    places = {"data_dir": "", "teacher_weights": ""}  # contents are compared, not names
    config = metadata["config"] | places
    facts = metadata | places | {"config": config, "first_step": first_step}
    hosts.check_same(
        facts,
        f"{plan.name}: the processes of this run have different configs, training images, teacher "
        "weights or checkpoints: start all of them with the same command, the same data and a "
        "--workdir that all of them see",
    )


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function to call once a dispatch, which returns whether to stop."""
    if jax.process_count() == 1:
        with deferred() as should_stop:
            yield should_stop
    else:
        numbers = itertools.count()
        yield lambda: hosts.should_stop(next(numbers))
