"""The trainings of a run: planned, compared with what is there, begun or gone on with."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rd_jax.config import Config, Depends, as_dict, differing, with_seed
from rd_jax.data import Split
from rd_jax.data.order import batch_indices, holdout_indices, steps_until
from rd_jax.data.splits import num_train
from rd_jax.method.train import TrainState, create_train_state
from rd_jax.run.build import compute_dtype, model_of, optimizer_of
from rd_jax.run.trained import check_teacher, hashes_of
from rd_jax.store import checkpoint
from rd_jax.store.results import read_results
from rd_jax.store.workdir import (
    JOINT,
    Training,
    find_trainings,
    moved_aside,
    part_of,
    training_of,
    trainings_of,
)
from rd_jax.system import hosts
from rd_jax.system.errors import UserError
from rd_jax.system.files import composed
from rd_jax.weights.teacher import LoadedTeacher

logger = logging.getLogger(__name__)


Sha256 = Callable[[str], tuple[str, str]]  # of a category's training images and of its test


class Part(NamedTuple):
    """A category that a training is evaluated on, and where what comes of that is kept."""

    category: str
    training: Training


class Task(NamedTuple):
    """One training, of which nothing is decoded yet: of one category, or all, and one seed."""

    config: Config
    parts: list[Part]
    training: Training
    num_images: int  # to train on, of all parts
    trained_on: np.ndarray  # which of them are not held out

    @property
    def name(self) -> str:
        """What the progress is shown under."""
        seeds, name = self.config.seeds, self.training.category
        return f"{name}, seed {self.config.seed}" if seeds else name

    @property
    def categories(self) -> tuple[str, ...]:
        """Those that it is trained on."""
        return tuple(part.category for part in self.parts)

    @property
    def places(self) -> list[Training]:
        """All that is written to."""
        return list(dict.fromkeys([self.training, *(part.training for part in self.parts)]))

    @property
    def last_step(self) -> int:
        """The number of steps."""
        return self.steps_until(self.config.num_epochs)

    def steps_every(self, epochs: int) -> set[int]:
        """The steps before the last at which every so many epochs end; 0 epochs: none."""
        multiples = range(epochs, self.config.num_epochs, epochs) if epochs else ()
        return {self.steps_until(epoch) for epoch in multiples} - {self.last_step}

    def steps_until(self, epoch: int) -> int:
        """Steps after which every image that is not held out was used `epoch` times."""
        return steps_until(epoch, len(self.trained_on), self.config.batch_size)


def check_layout(
    config: Config, workdir: Path, categories: Sequence[str], moved: Collection[str] = ()
) -> None:
    """Raises UserError if `workdir` has trainings of one category where one for all is asked for.

    Or the other way around, or of one seed where several are; but for what is `moved` aside.
    """
    joint = trainings_of(workdir, JOINT)
    if joint and not config.joint and JOINT not in moved:
        raise UserError(
            f"{joint[0].folder} holds one training for all categories: set --config.joint=True, "
            "choose another --workdir, or start anew with --restart"
        )
    if config.joint:
        rows = [result for results in read_results(workdir).values() for result in results]
        alone = [training for training, row in rows if not row["joint"]]
        there = (training for training in find_trainings(workdir) if not training.trained_in)
        alone += (training for training in there if training.checkpoints.is_dir())
        for training in alone:
            if composed(training.category) not in map(composed, moved):
                raise UserError(
                    f"{training.folder} is of a training of this category alone: choose another "
                    "--workdir, or set --config.joint=False"
                )
    for category in [JOINT] if config.joint else categories:
        there = (t for t in trainings_of(workdir, category) if t.checkpoints.is_dir())
        seeds = [training.seed for training in there if category not in moved]
        if config.seeds and None in seeds:
            raise UserError(
                f"{workdir / category} holds a training of one seed, without config.seeds: choose "
                "another --workdir"
            )
        if not config.seeds and any(seed is not None for seed in seeds):
            raise UserError(
                f"{workdir / category} holds trainings of several seeds: set --config.seeds, or "
                "choose another --workdir"
            )


def planned(config: Config, workdir: Path, categories: Sequence[str]) -> list[Task]:
    """The trainings that a category, or all of them, is to have, one for each seed.

    Raises UserError if the hold-out leaves nothing to train on, or holds nothing.
    """
    counts = [num_train(config, category) for category in categories]
    starts = np.cumsum([0, *counts])

    def task(own: Config, seed: int | None) -> Task:
        training = training_of(workdir, JOINT if own.joint else categories[0], seed)
        places = [part_of(training, name) for name in categories] if own.joint else [training]
        chosen = [holdout_indices(own.seed, own.holdout, count)[0] for count in counts]
        trained_on = np.concatenate([a + b for a, b in zip(starts, chosen, strict=False)])
        return Task(own, list(map(Part, categories, places)), training, starts[-1], trained_on)

    return [task(with_seed(config, s), s) for s in config.seeds] or [task(config, None)]


def decoded(task: Task, load: Callable[[str], Split], sha256: Sha256) -> list[Split]:
    """The task's splits. Raises UserError if there are other training images than were planned."""
    splits = [load(category) for category in task.categories]
    if sum(len(split.train) for split in splits) != task.num_images:
        raise UserError(
            f"{task.name}: training images came or went since this run began: start it again"
        )
    if any(split.train_sha256 != sha256(split.name)[0] for split in splits):
        raise UserError(
            f"{task.name}: training images changed since this run began: start it again"
        )
    return splits


def train_sha256(config: Config, hashes: Mapping[str, str]) -> str | dict[str, str]:
    """What a checkpoint says of the images: their hash or, of several categories, each one's."""
    of_each = {composed(category): sha256 for category, sha256 in hashes.items()}
    return of_each if config.joint else next(iter(of_each.values()))


def check_same_training(
    config: Config,
    categories: Sequence[str],
    teacher: LoadedTeacher,
    workdir: Path,
    sha256: Sha256,
) -> None:
    """Compares the config with all that a category, or all of them, has, of any seed.

    Raises UserError if going on would mix two trainings, or average over what differs in more
    than the seed, or if processes see other images. More epochs are no other training: none of its
    steps depends on their number.
    """
    category = JOINT if config.joint else categories[0]
    there = [
        (training, saved)
        for training in trainings_of(workdir, category)
        if (saved := checkpoint.latest_metadata(training.checkpoints))
    ]
    if not there and jax.process_count() == 1:
        return
    hashes = train_sha256(config, {name: sha256(name)[0] for name in categories})
    for training, saved in there:
        check_teacher(teacher, saved, training.folder)
        is_gone_on_with = training.seed is None or training.seed in config.seeds
        changes = [
            f"{name} ({before!r}, now {now!r})"
            for name, before, now in differing(saved["config"], as_dict(config), Depends.TRAINING)
            if not (name == "seed" and config.seeds)
            and not (name == "num_epochs" and now > before and is_gone_on_with)
        ]
        before, now = saved["dtype"], compute_dtype(config).name
        if now != before and (config.seeds or not _is_done(saved, config)):
            where = jax.default_backend()
            changes.append(f"dtype ({before!r}, now {config.dtype!r}, on {where} {now!r})")
        problem = f"another config: {', '.join(changes)}" if changes else None
        if saved["train_sha256"] != hashes:
            problem = problem or _other_images(hashes, hashes_of(saved, category))
        if problem:
            raise UserError(
                f"{training.folder} was trained with {problem}; choose another --workdir, or start "
                "anew with --restart"
            )
        if is_gone_on_with and not saved["can_go_on"] and not _is_done(saved, config):
            raise UserError(
                f"{training.folder} is finished after {saved['config']['num_epochs']} epochs and "
                "did not keep the optimiser's state, which more need: start anew with --restart, "
                "next time with --config.keep_optimizer=True"
            )


def has_steps_left(task: Task) -> bool:
    """Whether the training is not there, or not at the end of the config's epochs."""
    saved = checkpoint.latest_metadata(task.training.checkpoints)
    return saved is None or not _is_done(saved, task.config)


def _is_done(saved: Mapping[str, Any], config: Config) -> bool:
    """Whether the training of a checkpoint's metadata has all of the config's epochs."""
    is_finished = saved["step"] == saved["last_step"]
    return is_finished and saved["config"]["num_epochs"] == config.num_epochs


def _other_images(now: str | Mapping[str, str], before: Mapping[str, str]) -> str:
    """How the images trained on before, by category, differ."""
    if isinstance(now, str):
        return "other training images than are there now"
    if now.keys() != before.keys():
        return f"the categories {', '.join(before)}, not with {', '.join(now)}"
    others = ", ".join(name for name in now if now[name] != before[name])
    return f"other training images of {others} than are there now"


def initial_state(
    config: Config, training: Training, last_step: int
) -> tuple[TrainState | None, Mapping[str, float | None]]:
    """A new state, or that of the latest good checkpoint, with the time spent so far.

    None if that is of the last step, and nothing is left to do. Damaged checkpoints are moved out
    of the way. Raises UserError for what cannot be read, or is the state of another optimiser.
    """
    model, optimizer = model_of(config), optimizer_of(config)

    def first() -> TrainState:
        return create_train_state(model, optimizer, jax.random.key(config.seed), config.ema)

    for step in checkpoint.steps(training.checkpoints):
        hosts.wait_for_all(f"restoring {step}")  # all have listed the same steps
        problem, state = None, None
        try:
            saved = checkpoint.load(training.checkpoints, step)
            if step < last_step:
                state = first()
                like = jax.device_get(state.rest)
                rest = checkpoint.load_rest(training.checkpoints, step, like)
                state = state.gone_on_with(saved.student_variables, rest, state.step + step)
        except UserError as error:
            problem = error
        with hosts.together():  # what is no damage ends them all, and leaves everything as it is
            if problem and not isinstance(problem, checkpoint.DamagedCheckpointError):
                raise problem
        if hosts.all_agree(problem is None):
            return state, saved.metadata["timing"]
        if hosts.is_first():
            kept = moved_aside(training.checkpoints / str(step), training.damaged)
            logger.warning("%s; it is kept in %s", problem or "another process failed", kept)
    return first(), {"train_seconds": 0.0, "images_per_second": None}


def divergence(task: Task, splits: Sequence[Split], step: int, last_finite: float | None) -> str:
    """All that helps to find out why the loss of a step is not finite."""
    config, trained_on = task.config, task.trained_on
    order = batch_indices(config.seed, step - 1, len(trained_on), config.batch_size)
    of = [
        f"{split.name}/{name}" if config.joint else name
        for split in splits
        for name in split.train_names
    ]
    names = ", ".join(of[i] for i in sorted(set(trained_on[order])))
    before = "there was none" if last_finite is None else f"{last_finite:.6g}"
    saved = checkpoint.steps(task.training.checkpoints)
    last_good = f"at step {saved[0]} in {task.training.folder}" if saved else "there is none"
    return (
        f"{task.name}: the loss is not finite at step {step}: lower "
        "--config.learning_rate, or try --config.dtype=float32 (last finite loss: "
        f"{before}; last good checkpoint: {last_good}; images of this step: {names})"
    )
