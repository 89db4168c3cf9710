"""A whole run: train and evaluate every category and seed, and write what came out."""

import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rd_jax.config import Config, as_dict, size_of, validate
from rd_jax.data import Joined, Split
from rd_jax.data.splits import check_apart, check_splits, load_split, sha256_of
from rd_jax.method.loss import LOSSES
from rd_jax.method.metrics import metrics_of_scored
from rd_jax.method.train import TrainState, make_parallel_train_steps, train_state_shapes
from rd_jax.run.build import compute_dtype, model_of, optimizer_of, scorer_of
from rd_jax.run.evaluation import evaluate_trained, summarised, write_summaries
from rd_jax.run.loop import TrainSteps, steps_per_dispatch, training
from rd_jax.run.progress import Clock, Diverged, followed, row_writer
from rd_jax.run.scoring import Program, Scorer, compiled_distances, score_split
from rd_jax.run.task import (
    Sha256,
    Task,
    check_layout,
    check_same_training,
    decoded,
    divergence,
    has_steps_left,
    initial_state,
    planned,
    train_sha256,
)
from rd_jax.run.trained import hashes_of
from rd_jax.store import checkpoint
from rd_jax.store.lock import check_workdir, claimed, first_free
from rd_jax.store.results import means, read_results
from rd_jax.store.rows import Row, drop_rows_after
from rd_jax.store.workdir import JOINT, check_category, set_aside, training_of, trainings_of
from rd_jax.system import hosts
from rd_jax.system.errors import UserError
from rd_jax.system.files import composed, writing
from rd_jax.system.interruption import Interrupted, deferred
from rd_jax.weights.teacher import LoadedTeacher, teacher_of

logger = logging.getLogger(__name__)


class _Programs(NamedTuple):
    """What all trainings compute with, compiled once it is begun or needed."""

    begin: Callable[[], None]  # XLA compiles without Python, which decodes meanwhile
    train_steps: Callable[[], TrainSteps]
    scorer: Scorer


def train(config: Config, workdir: Path, restart: bool = False) -> str:
    """Trains and evaluates the configured categories, each alone or all together.

    Returns the table as Markdown, or nothing if it is left to other runs of the same, which work on
    what is not finished yet; each takes what no other works on, until nothing is left.

    A training that `workdir` holds a checkpoint of goes on from there, unless `restart` moves it
    aside; what is finished and evaluated already is left as it is. Before the first step all
    images are found and all checkpoints compared with the config. Raises UserError for what the
    user can mend, Interrupted after a signal.
    """
    with ExitStack() as claims, hosts.together():
        validate(config, jax.device_count())
        if config.rd4ad_checkpoint:
            raise UserError("config.rd4ad_checkpoint can only be evaluated: add --mode eval")
        if config.tensorboard and importlib.util.find_spec("tensorboardX") is None:
            raise UserError("config.tensorboard=True needs pip install tensorboardX")
        names = check_splits(config)
        for name in names:
            check_category(name)
        groups = [sorted(names, key=composed)] if config.joint else [[name] for name in names]
        names += [JOINT] if config.joint else []
        check_apart(config, names, workdir)
        moved = _belonging(workdir, names) if restart else []
        places = [
            training_of(workdir, name, seed)
            for name in moved or names
            for seed in config.seeds or [None]
        ]
        if restart:
            claims.enter_context(claimed(workdir, places, whole_categories=True))
        else:
            check_workdir(workdir, places)
        check_layout(config, workdir, names, moved)
        teacher = teacher_of(config)
        _check_same_teacher(teacher)
        if moved:
            _start_anew(workdir, moved)
        sha256 = cache(partial(sha256_of, config))  # asked for once: a big folder takes seconds
        tasks = [task for group in groups for task in planned(config, workdir, group)]
        for group in groups:
            check_same_training(config, group, teacher, workdir, sha256)
    load = lru_cache(len(groups[0]))(partial(load_split, config))  # which seeds share
    with _programs(config, teacher) as programs:
        return _shared(tasks, config, workdir, teacher, programs, load, sha256)


def _shared(
    tasks: Sequence[Task],
    config: Config,
    workdir: Path,
    teacher: LoadedTeacher,
    programs: _Programs,
    load: Callable[[str], Split],
    sha256: Sha256,
) -> str:
    """Does of the tasks what no other run does; returns the table if this run was the last."""
    left, is_shared = [*tasks], False
    while True:
        with _taken(left, config, workdir) as i:
            is_shared |= i != 0 and bool(left)
            if i is not None:
                task, left = left[i], [*left[i + 1 :], *left[:i]]  # last, what others work on
                try:
                    with hosts.together():
                        check_same_training(config, task.categories, teacher, workdir, sha256)
                    _train_and_evaluate(task, teacher, programs, load, sha256)
                except UserError:
                    if read_results(workdir):
                        write_summaries(workdir)  # of what was finished before
                    raise
                continue
        table = summarised(workdir, [task.places for task in left], is_shared)
        if table is not None:
            return table


@contextmanager
def _taken(left: Sequence[Task], config: Config, workdir: Path) -> Iterator[int | None]:
    """Inside, the first of these that is free belongs to this run, and shows in its workdir."""

    def begin(i: int) -> None:
        check_layout(config, workdir, left[i].categories)
        with writing(checkpoints := left[i].training.checkpoints):
            checkpoints.mkdir(parents=True, exist_ok=True)

    with first_free(workdir, [task.places for task in left], begin) as i:
        try:
            yield i
        finally:
            if i is not None and hosts.is_first():
                with suppress(OSError):  # they are not empty
                    left[i].training.checkpoints.rmdir()
                    left[i].training.folder.rmdir()


def _check_same_teacher(teacher: LoadedTeacher) -> None:
    """Raises UserError if several processes loaded different weights."""
    if not hosts.all_same(teacher.sha256):
        raise UserError(
            f"the processes loaded different teacher weights (here {teacher.weights}, sha256 "
            f"{teacher.sha256[:12]}...): set --config.teacher_weights to a file that all see"
        )


@contextmanager
def _programs(config: Config, teacher: LoadedTeacher) -> Iterator[_Programs]:
    model, optimizer, size = model_of(config), optimizer_of(config), size_of(config)
    shapes = train_state_shapes(model, optimizer, config.ema)

    def train_steps() -> TrainSteps:
        max_steps = steps_per_dispatch(config.batch_size, size)
        num_devices = jax.local_device_count()
        images = (num_devices, max_steps, config.batch_size // jax.device_count(), *size, 3)
        loss = LOSSES[config.loss]
        steps = make_parallel_train_steps(model, optimizer, loss, max_steps, ema=config.ema)
        if jax.process_count() > 1:  # where pmap compiles at its first call alone
            return steps
        return steps.lower(
            shapes,
            teacher.variables,
            jax.ShapeDtypeStruct(images, jnp.uint8),
            jax.ShapeDtypeStruct((), jnp.int32),
        ).compile()

    scorer = scorer_of(config)

    def distances() -> Program:
        variables = teacher.variables, shapes.student_variables
        return compiled_distances(scorer.distances, *variables, config.batch_size, size)

    compiler = ThreadPoolExecutor(1)
    steps = cache(partial(compiler.submit, train_steps))
    program = cache(partial(compiler.submit, distances))

    def begin() -> None:
        steps()
        program()

    own = replace(scorer, distances=lambda *arguments: program().result()(*arguments))
    try:
        yield _Programs(begin, lambda: steps().result(), own)
    finally:
        compiler.shutdown(wait=False, cancel_futures=True)


def _belonging(workdir: Path, names: list[str]) -> list[str]:
    """What is moved aside with these categories: one training for all of them, and all of its."""
    joint = trainings_of(workdir, JOINT)
    if not joint:
        return names
    known = filter(None, (checkpoint.latest_metadata(t.checkpoints) for t in joint))
    parts = [name for metadata in known for name in hashes_of(metadata, JOINT)]
    others = [name for name in (*names, *parts) if name != JOINT]
    return [*dict.fromkeys(others), JOINT]  # which tells that there is more to move, so it is last


def _start_anew(workdir: Path, categories: Sequence[str]) -> None:
    with hosts.together():
        kept = set_aside(workdir, categories) if hosts.is_first() else {}
    for category, path in kept.items():
        logger.warning("%s: starting anew; what was there is kept in %s", category, path)


def _train_and_evaluate(
    task: Task,
    teacher: LoadedTeacher,
    programs: _Programs,
    load: Callable[[str], Split],
    sha256: Sha256,
) -> None:
    if has_steps_left(task):
        programs.begin()
    place, last_step = task.training, task.last_step
    state, timing = initial_state(task.config, place, last_step)
    if state is None:
        logger.info("%s: trained already, step %d of %d", task.name, last_step, last_step)
    else:
        with hosts.together():
            splits = decoded(task, load, sha256)
        try:
            _train(task, splits, teacher, programs, state, timing)
        except Diverged as error:  # what was being saved is complete now
            raise UserError(divergence(task, splits, *error.args)) from error
    with hosts.together():
        trained = checkpoint.load_latest(place.checkpoints)
        if hosts.is_first():
            checkpoint.keep_latest(place.checkpoints)
        for category, part in task.parts:
            common = (load, teacher, trained, programs.scorer, part)
            _, test_sha256 = sha256(category)
            evaluate_trained(task.config, category, test_sha256, *common, on_any_device=True)


def _train(
    task: Task,
    splits: Sequence[Split],
    teacher: LoadedTeacher,
    programs: _Programs,
    state: TrainState,
    timing: Mapping[str, float | None],
) -> None:
    """Trains from `state` to the last step; Interrupted says where it was saved before that."""
    config, place, last_step = task.config, task.training, task.last_step
    first_step = int(state.step)
    evaluate_at = task.steps_every(config.eval_every_epochs)
    save_at = task.steps_every(config.checkpoint_every_epochs) | {last_step}
    pause_at = evaluate_at | save_at
    if hosts.is_first():
        drop_rows_after(place.metrics, first_step)
        for part in task.parts:
            part.training.results.unlink(missing_ok=True)  # of fewer steps
    logger.info(
        "%s: %d images, steps %d to %d, teacher %s (%s)",
        *(task.name, task.num_images, first_step, last_step, config.backbone, teacher.weights),
    )
    dispatches = training(
        programs.train_steps(),
        steps_per_dispatch(config.batch_size, size_of(config)),
        teacher.variables,
        Joined([split.train for split in splits]) if config.joint else splits[0].train,
        state,
        last_step=last_step,
        batch_size=config.batch_size,
        seed=config.seed,
        pause_at=pause_at,
        chosen=task.trained_on,
    )
    clock = Clock(timing)

    def evaluated(state: TrainState) -> Row:
        variables = teacher.variables, jax.device_get(state.student_variables)
        rows = []
        for split in splits:
            found, _ = score_split(programs.scorer, *variables, split, config.batch_size)
            rows.append(metrics_of_scored(found, split.labels))
        return means(rows)

    metadata = {
        "config": as_dict(config),
        "teacher_weights": teacher.weights,
        "teacher_sha256": teacher.sha256,
        "train_sha256": train_sha256(config, {split.name: split.train_sha256 for split in splits}),
        "last_step": last_step,
        "dtype": compute_dtype(config).name,
    }
    events = place.tensorboard if config.tensorboard else None
    with deferred() as should_stop:
        with (
            row_writer(place.metrics, events) as write_row,
            checkpoint.writer(place.checkpoints) as save,
        ):
            for state, step, stops in followed(
                dispatches, task, first_step, pause_at, write_row, should_stop
            ):
                clock.first_dispatch(state, step)
                with clock.stopped():
                    if step in evaluate_at:
                        write_row({"step": step, **evaluated(state)})
                if step in save_at or stops:
                    metadata["timing"] = clock.timing(step, config.batch_size)
                    rest = state.rest if step < last_step or config.keep_optimizer else None
                    student, rest = jax.device_get((state.student_variables, rest))
                    save(step, student, rest, metadata)
                if stops and step < last_step:
                    break
        is_stopped = should_stop(at_once=True)  # also by a signal since the last step
    if is_stopped:
        raise Interrupted(f"interrupted: {task.name} is saved at step {step} of {last_step}")
