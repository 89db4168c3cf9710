"""Orbax checkpoints of what learns, with the config and the teacher's name and hash."""

import errno
import json
import logging
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from rd_jax.system import hosts
from rd_jax.system.errors import UserError, first_line
from rd_jax.system.files import check_writable, writing

logger = logging.getLogger(__name__)

_OPTIMIZER = "optimizer"  # the item of a checkpoint that going on needs, and nothing else


class DamagedCheckpointError(UserError):
    """A checkpoint that was complete once cannot be read, or holds other values than written."""


class Checkpoint(NamedTuple):
    """A checkpoint of a folder, without the optimiser."""

    step: int
    student_variables: dict[str, Any]  # {"params", "batch_stats"} of all that learns, numpy
    # config, teacher_weights, teacher_sha256, train_sha256, last_step, dtype, timing
    metadata: dict[str, Any]
    checksum: int  # of the student's variables


class _Folder(type(epath.Path())):  # type: ignore[misc]
    """Orbax looks for files by patterns in which the folder's own name would be a pattern, too."""

    def glob(self, pattern: str) -> Iterator[epath.Path]:
        return map(type(self), Path(self).glob(pattern))


def _manager(folder: Path, **options: Any) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        _Folder(folder.absolute()), options=ocp.CheckpointManagerOptions(create=False, **options)
    )


def _reader(folder: Path) -> ocp.CheckpointManager:
    """Of several processes, each reads for itself, when it likes."""
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"reader-{own}"
    )
    absl = logging.getLogger("absl")  # through which Orbax warns that a reader only reads
    before = absl.level
    absl.setLevel(logging.ERROR)
    try:
        return _manager(folder, read_only=True, multiprocessing_options=alone)
    finally:
        absl.setLevel(before)


@contextmanager
def writer(folder: Path) -> Iterator[Callable[[int, Any, Any, Mapping[str, Any]], None]]:
    """A function save(step, student_variables, rest, metadata) for trees of numpy arrays.

    The rest is what going on needs besides: `TrainState.rest`, or None where nothing will go on.

    It returns while the checkpoint is still being written, once the one before is complete; all
    are complete when the context ends. The two latest are kept. Several processes save together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hosts.wait_for_all("checkpoints read")
    with _quiet_about_what_is_given_up():
        manager = _manager(folder, max_to_keep=2, cleanup_tmp_directories=True)

        def save(step: int, student_variables: Any, rest: Any, metadata: Mapping[str, Any]) -> None:
            checksums = {
                "student": checksum(student_variables),
                "metadata": _checksum_of_metadata(metadata),
            }
            items = {"student": ocp.args.StandardSave(student_variables)}
            if rest is not None:
                checksums[_OPTIMIZER] = checksum(rest)
                items[_OPTIMIZER] = ocp.args.StandardSave({"opt_state": rest})
            args = ocp.args.Composite(
                **items, metadata=ocp.args.JsonSave({**metadata, "checksums": checksums})
            )
            with hosts.together():  # where Orbax cannot write, it keeps the process alive
                check_writable(folder)
            with _naming(folder):
                manager.save(step, args=args)

        try:
            yield save
        finally:
            with _naming(folder):
                manager.close()


def checksum(tree: Any) -> int:
    """A number that any damage to the values of a tree of arrays changes, at memory's speed."""
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(tree)]
    sums = [
        (leaf.shape, str(leaf.dtype), int(np.sum(leaf.ravel().view(np.uint32), dtype=np.uint64)))
        for leaf in leaves
    ]
    return zlib.crc32(repr(sums).encode())


def _checksum_of_metadata(metadata: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(metadata, sort_keys=True).encode())


def steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in `folder`, latest first."""
    if not folder.is_dir():
        return []
    with _reader(folder) as manager:
        return sorted(manager.all_steps(), reverse=True)


def _restore(folder: Path, step: int, **items: Any) -> tuple[dict[str, Any], Any, dict[str, int]]:
    """The metadata, the items and their checksums of one checkpoint.

    Raises DamagedCheckpointError, or UserError where the disk or a permission is what fails.
    """
    args = ocp.args.Composite(metadata=ocp.args.JsonRestore(), **items)
    try:
        with _reader(folder) as manager, _quiet_about_what_is_given_up():
            restored = manager.restore(step, args=args)
        metadata = dict(restored.metadata)
        checksums = metadata.pop("checksums")
        found = {name: checksum(restored[name]) for name in items}
        for name, value in (found | {"metadata": _checksum_of_metadata(metadata)}).items():
            if value != checksums[name]:
                raise ValueError(f"{name} differs from its checksum")
    except Exception as error:  # the storage libraries raise all kinds of errors
        _check_readable(folder / str(step))
        raise DamagedCheckpointError(
            f"checkpoint {folder / str(step)} is damaged ({_reason_of(error)}): train again with "
            "the same command, which goes on from the checkpoint before it, if there is one"
        ) from error
    return metadata, restored, checksums


def _check_readable(folder: Path) -> None:
    """Raises UserError for the first file or folder in it that the system does not let be read."""

    def stop(error: OSError) -> None:
        raise error

    try:
        for parent, _, names in os.walk(folder, onerror=stop):
            for name in names:
                Path(parent, name).read_bytes()
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} cannot be read ({error.strerror}): mend the disk or the "
            "permissions; nothing was changed"
        ) from error


def latest_metadata(folder: Path) -> dict[str, Any] | None:
    """The metadata of the latest checkpoint in which they can be read, if any.

    With its "step", and whether it "can_go_on".
    """
    for step in steps(folder):
        try:
            metadata, _, checksums = _restore(folder, step)
            return metadata | {"step": step, "can_go_on": _OPTIMIZER in checksums}
        except UserError as error:
            if not (folder / str(step)).exists():  # another run, which trains, has newer ones
                return latest_metadata(folder)
            if not isinstance(error, DamagedCheckpointError):
                raise
            logger.warning("%s", error)
    return None


def keep_latest(folder: Path) -> None:
    """Removes what is before the latest checkpoint, if that is one that nothing goes on from."""
    saved = latest_metadata(folder)
    if saved and not saved["can_go_on"]:
        with writing(folder):
            for step in steps(folder):
                if step < saved["step"]:
                    shutil.rmtree(folder / str(step))


def load(folder: Path, step: int) -> Checkpoint:
    """A checkpoint as it was written. Raises DamagedCheckpointError."""
    metadata, items, checksums = _restore(folder, step, student=ocp.args.StandardRestore())
    return Checkpoint(step, items.student, metadata, checksums["student"])


def load_rest(folder: Path, step: int, like: Any) -> Any:
    """The optimiser's state and what else a checkpoint needs to go on, in `like`'s structure.

    Raises DamagedCheckpointError, or UserError if it is the state of another optimiser or model.
    """
    like = {"opt_state": like}
    try:
        _, items, _ = _restore(folder, step, optimizer=ocp.args.StandardRestore(like))
        found = items.optimizer
    except DamagedCheckpointError:
        found = _as_saved(folder, step)
        if found is None or _kinds(found) == _kinds(like):
            raise
    if _kinds(found) != _kinds(like):
        raise UserError(
            f"the optimiser's state in checkpoint {folder / str(step)} is of another optimiser or "
            "other networks: go on with what began it, or start anew with --restart"
        )
    return found["opt_state"]


def _as_saved(folder: Path, step: int) -> Any:
    """The optimiser's item in whatever structure it has, if it can be read at all."""
    args = ocp.args.Composite(optimizer=ocp.args.StandardRestore())
    try:
        with _reader(folder) as manager, _quiet_about_what_is_given_up():
            return manager.restore(step, args=args).optimizer
    except Exception:  # the storage libraries raise all kinds of errors
        return None


def _kinds(tree: Any) -> dict[Any, Any]:
    """Shape and dtype by path; of what holds no array, None."""
    flat = ocp.tree.to_flat_dict(tree, keep_empty_nodes=True)
    return {
        path: (leaf.shape, np.dtype(leaf.dtype)) if hasattr(leaf, "dtype") else None
        for path, leaf in flat.items()
    }


def load_latest(folder: Path) -> Checkpoint:
    """The latest checkpoint in `folder`. Raises UserError if it is absent or damaged."""
    found = steps(folder)
    if not found:
        raise UserError(f"no checkpoint in {folder}: train first, with --mode train")
    return load(folder, found[0])


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Turns what goes wrong in writing a checkpoint into a UserError."""
    try:
        yield
    except Exception as error:  # the storage libraries raise all kinds of errors
        raise UserError(
            f"cannot write a checkpoint into {folder} ({_reason_of(error)}); those that were "
            "complete still are, and the same command goes on from the latest"
        ) from error


def _reason_of(error: Exception) -> str:
    """What an error of the storage libraries comes down to, in one line."""
    full = os.strerror(errno.ENOSPC)
    return f"{full}: free some" if full in str(error) else first_line(error)[:200]


@contextmanager
def _quiet_about_what_is_given_up() -> Iterator[None]:
    """Orbax leaves other operations behind when one fails; their complaints are no concern."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook
    yield
    sys.unraisablehook = before  # not after a failure: they may come late
