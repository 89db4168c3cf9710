"""Orbax checkpoints of what learns, with the config and the teacher's name and hash."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orbax.checkpoint as ocp

from rd_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

FOLDER = "checkpoints"


class Checkpoint(NamedTuple):
    """The latest checkpoint of a folder, without the optimiser."""

    step: int
    student_variables: dict[str, Any]  # {"params", "batch_stats"}, numpy arrays
    metadata: dict[str, Any]  # "config", "teacher_weights", "teacher_sha256", ...


def _manager(folder: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    return ocp.CheckpointManager(folder.absolute(), options=options)


def save(
    folder: Path,
    step: int,
    student_variables: Mapping[str, Any],
    opt_state: Any,
    metadata: Mapping[str, Any],
) -> None:
    """Writes a checkpoint of numpy arrays and returns when it is complete on disk."""
    args = ocp.args.Composite(
        student=ocp.args.StandardSave(student_variables),
        optimizer=ocp.args.StandardSave({"opt_state": opt_state}),
        metadata=ocp.args.JsonSave(dict(metadata)),
    )
    with _manager(folder) as manager:
        manager.save(step, args=args)


def _restore_latest(folder: Path, **items: Any) -> tuple[int, Any] | None:
    """Step and items of the latest complete checkpoint in `folder`, or None."""
    if not folder.is_dir():
        return None
    with _manager(folder) as manager:
        step = manager.latest_step()
        if step is None:
            return None
        return step, manager.restore(step, args=ocp.args.Composite(**items))


def load_metadata(folder: Path) -> dict[str, Any] | None:
    """The metadata of the latest complete checkpoint in `folder`, or None."""
    latest = _restore_latest(folder, metadata=ocp.args.JsonRestore())
    return None if latest is None else latest[1].metadata


def load(folder: Path) -> Checkpoint | None:
    """The latest complete checkpoint in `folder`, or None."""
    latest = _restore_latest(
        folder, student=ocp.args.StandardRestore(), metadata=ocp.args.JsonRestore()
    )
    if latest is None:
        return None
    step, items = latest
    return Checkpoint(step, items.student, items.metadata)


def load_opt_state(folder: Path, step: int, like: Any) -> Any:
    """The optimiser's state of a checkpoint, as numpy arrays in the structure of `like`."""
    args = ocp.args.Composite(optimizer=ocp.args.StandardRestore({"opt_state": like}))
    with _manager(folder) as manager:
        return manager.restore(step, args=args).optimizer["opt_state"]


def load_trained(training: Path) -> Checkpoint:
    """The latest checkpoint of a training's folder. Raises UserError if there is none."""
    checkpoint = load(training / FOLDER)
    if checkpoint is None:
        raise UserError(f"no checkpoint in {training / FOLDER}: train first, with --mode train")
    return checkpoint


def config_of(metadata: Mapping[str, Any]) -> "ConfigDict":
    """The config that the checkpoint was trained with; its teacher is the one that was used."""
    from ml_collections import ConfigDict  # not on every machine that trains

    values = metadata["config"]
    resolved = {
        "scales": tuple(values["scales"]),
        "seeds": tuple(values["seeds"]),
        "teacher_weights": metadata["teacher_weights"],
    }
    return ConfigDict(values | resolved)


def restore(workdir: str | Path, category: str) -> tuple["ConfigDict", dict[str, Any]]:
    """The config and the student's variables of the last step trained in `workdir`.

    The variables {'params', 'batch_stats'} are float32 numpy arrays, ready for `make_scorer`
    with the same config, on any number of devices; its `teacher_weights` say which teacher to
    load. Of several seeds, `category` names one: "bottle/seed_1". Raises UserError if `workdir`
    has no checkpoint of `category`.
    """
    checkpoint = load_trained(Path(workdir) / category)
    return config_of(checkpoint.metadata), checkpoint.student_variables
