"""Compare the trainings in a workdir with a plan; resume them or move them aside."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax

from rd_jax.config import Depends, as_dict, differing
from rd_jax.data import Split
from rd_jax.data.order import batch_indices
from rd_jax.method.train import TrainState, create_train_state
from rd_jax.run.plan import Plan, compute_dtype, trained_model_of
from rd_jax.run.programs import Kept
from rd_jax.run.progress import NO_TIME, Timing
from rd_jax.run.trained import check_teacher
from rd_jax.store import checkpoint
from rd_jax.store.checkpoint import Checkpoint, DamagedCheckpointError
from rd_jax.store.workdir import JOINT, Training, Workdir, moved_aside
from rd_jax.system import hosts
from rd_jax.system.errors import UserError
from rd_jax.weights.teacher import LoadedTeacher

logger = logging.getLogger(__name__)


def names_to_replace(plans: Sequence[Plan], run: Workdir) -> list[str]:
    """Return the names of trainings that --restart moves aside, a joint one as a whole."""
    names = [place.name for plan in plans for place in (*plan.evaluations, plan.place)]
    for joint in (training for training in run.trainings() if training.name == JOINT):
        metadata = checkpoint.latest_metadata(joint.checkpoints) or {"train_sha256": {}}
        names += [*metadata["train_sha256"], JOINT]
    return list(dict.fromkeys(names))


def check_layout(plans: Sequence[Plan], run: Workdir, replaced: Collection[str]) -> None:
    """Raise UserError if the workdir holds trainings of another kind that are not `replaced`.

    A joint training and trainings of single categories exclude each other in a workdir. So do, in a
    category, trainings of one seed and of several.
    """
    is_joint, is_seeded = plans[0].place.name == JOINT, plans[0].place.seed is not None
    for there in (training for training in run.trainings() if training.name not in replaced):
        if there.name == JOINT and not is_joint:
            raise UserError(
                f"{there.folder} holds one training for all categories: set --config.joint=True, "
                "choose another --workdir, or start anew with --restart"
            )
        if there.name != JOINT and is_joint:
            raise UserError(
                f"{there.folder} is of a training of this category alone: choose another "
                "--workdir, or set --config.joint=False"
            )
        if is_seeded != (there.seed is not None) and there.name in {p.place.name for p in plans}:
            held, remedy = (
                ("a training of one seed, without config.seeds", "")
                if is_seeded
                else ("trainings of several seeds", "set --config.seeds, or ")
            )
            folder = run.training(there.name).folder
            raise UserError(f"{folder} holds {held}: {remedy}choose another --workdir")


def check_same_training(plan: Plan, teacher: LoadedTeacher, run: Workdir) -> bool:
    """Compare a plan with the trainings of its name, of any seed. Return whether it is done.

    Raise UserError if going on would mix two trainings, or average trainings that differ in more
    than the seed. More epochs are allowed: no step depends on their number.
    """
    is_finished = False
    for training in run.places(plan.place.name):
        if saved := checkpoint.latest_metadata(training.checkpoints):
            check_teacher(teacher, saved, training.folder)
            if problem := _difference(plan, training, saved):
                raise UserError(
                    f"{training.folder} was trained with {problem}; choose another --workdir, or "
                    "start anew with --restart"
                )
            if training == plan.place:
                is_finished = _is_done(saved, plan.config.num_epochs)
            if training == plan.place and not saved["can_go_on"] and not is_finished:
                raise UserError(
                    f"{training.folder} is finished after {saved['config']['num_epochs']} epochs "
                    "and did not keep the optimiser's state, which more epochs need: start anew "
                    "with --restart, next time with --config.keep_optimizer=True"
                )
    return is_finished


def _difference(plan: Plan, training: Training, saved: Mapping[str, Any]) -> str | None:
    """Return in words how a plan differs from a checkpoint's metadata, or None."""
    config = plan.config
    goes_on = training == plan.place or training.seed in config.seeds
    changes = [
        f"{name} ({before!r}, now {now!r})"
        for name, before, now in differing(saved["config"], as_dict(config), Depends.STEPS)
        if not (name == "seed" and training.seed is not None)
        and not (name == "num_epochs" and now > before and goes_on)
    ]
    before, now = saved["dtype"], compute_dtype(config).name
    if now != before and (config.seeds or not _is_done(saved, config.num_epochs)):
        where = jax.default_backend()
        changes.append(f"dtype ({before!r}, now {config.dtype!r}, on {where} {now!r})")
    if changes:
        return f"another config: {', '.join(changes)}"
    images = {category.name: category.load().train_sha256 for category in plan.categories}
    trained_on = saved["train_sha256"]
    if images.keys() != trained_on.keys():
        return f"the categories {', '.join(trained_on)}, not with {', '.join(images)}"
    others = ", ".join(name for name in images if images[name] != trained_on[name])
    return f"other training images of {others} than are there now" if others else None


def _is_done(saved: Mapping[str, Any], num_epochs: int) -> bool:
    """Return whether the training of a checkpoint is finished, after so many epochs."""
    is_finished = saved["step"] == saved["last_step"]
    return is_finished and saved["config"]["num_epochs"] == num_epochs


def begin(plan: Plan, kept: Kept) -> Checkpoint | tuple[TrainState, Timing]:
    """Return the checkpoint of a finished training, else the state to resume and its timing.

    The state is from the latest good checkpoint, or a new one. Damaged checkpoints are moved out of
    the way. Raise UserError if a checkpoint cannot be read, or is of another optimiser.
    """
    config, folder = plan.config, plan.place.checkpoints

    def first() -> TrainState:
        model = trained_model_of(config)
        return create_train_state(model, plan.optimizer, jax.random.key(config.seed), config.ema)

    for step in checkpoint.steps(folder):
        try:
            saved = checkpoint.load(folder, step)
            if step == plan.last_step:
                return saved
            state = first()
            rest = checkpoint.load_rest(folder, step, jax.device_get(state.rest))
            state = state.gone_on_with(saved.student_variables, rest, state.step + step)
            before = saved.metadata["kept"]
            if before != kept and "teacher features" in (before, kept):
                logger.info(
                    "%s: from step %d on with %s kept on the devices, before with %s: its steps "
                    "equal those of one training to rounding",
                    *(plan.name, step, kept, before),
                )
            return state, saved.metadata["timing"]
        except DamagedCheckpointError as error:
            if hosts.is_first():
                aside = moved_aside(folder / str(step), plan.place.damaged)
                logger.warning("%s; it is kept in %s", error, aside)
    return first(), NO_TIME


def divergence(plan: Plan, splits: Sequence[Split], step: int, last_finite: float | None) -> str:
    """Return a message about a loss that is not finite, with facts that help to find out why."""
    config, trained_on = plan.config, plan.trained_on
    order = batch_indices(config.seed, step - 1, len(trained_on), config.batch_size)
    of = [
        f"{split.name}/{name}" if len(splits) > 1 else name
        for split in splits
        for name in split.train_names
    ]
    names = ", ".join(of[i] for i in sorted(set(trained_on[order])))
    before = "there was none" if last_finite is None else f"{last_finite:.6g}"
    saved = checkpoint.steps(plan.place.checkpoints)
    last_good = f"at step {saved[0]} in {plan.place.folder}" if saved else "there is none"
    return (
        f"{plan.name}: the loss is not finite at step {step}: lower "
        "--config.learning_rate, or try --config.dtype=float32 (last finite loss: "
        f"{before}; last good checkpoint: {last_good}; images of this step: {names})"
    )
