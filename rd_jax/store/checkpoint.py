"""Orbax checkpoints: CHECKPOINTS/STEP/{student/, optimizer/, metadata/metadata}."""

import errno
import json
import logging
import os
import shutil
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

_MARGIN = 2**22  # bytes of a checkpoint besides its arrays, at most


class DamagedCheckpointError(UserError):
    """A checkpoint that was complete cannot be read, or its values differ from those written."""


class Checkpoint(NamedTuple):
    """A checkpoint without the optimiser."""

    step: int
    student_variables: dict[str, Any]  # {"params", "batch_stats"} of all that learns, numpy
    # config, teacher_weights, teacher_sha256, train_sha256 by category, last_step, dtype, timing
    metadata: dict[str, Any]
    checksum: int  # of the student's variables

    @property
    def last_step(self) -> int:
        """Return the number of steps of its training."""
        return self.metadata["last_step"]

    @property
    def is_finished(self) -> bool:
        """Return whether the training has no steps left."""
        return self.step == self.last_step


class _Folder(type(epath.Path())):  # type: ignore[misc]
    """A path that Orbax can search. Orbax itself takes `[` in a folder's name for a pattern."""

    def glob(self, pattern: str) -> Iterator[epath.Path]:
        return map(type(self), Path(self).glob(pattern))


def _alone() -> ocp.options.MultiprocessingOptions:
    """Return options with which Orbax waits for no other process."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process-{own}"
    )


@contextmanager
def writer(folder: Path) -> Iterator[Callable[[int, Any, Any, Mapping[str, Any]], int]]:
    """Yield a function save(step, student_variables, rest, metadata) for trees of numpy arrays.

    `rest` is `TrainState.rest`, which resuming needs, or None if nothing resumes. `save` waits
    until the checkpoint before is complete; the end of the context waits for the last one. The two
    latest are kept. `save` returns the checksum of the student's variables. In all processes but
    the first it does nothing else.
    """
    if not hosts.is_first():
        yield lambda _step, student_variables, *_: checksum(student_variables)
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, cleanup_tmp_directories=True, multiprocessing_options=_alone(), create=False
    )
    manager = ocp.CheckpointManager(_Folder(folder.absolute()), options=options)

    def save(step: int, student_variables: Any, rest: Any, metadata: Mapping[str, Any]) -> int:
        optimizer = {} if rest is None else {"optimizer": {"opt_state": rest}}
        trees = {"student": student_variables} | optimizer
        checksums = {name: checksum(tree) for name, tree in trees.items()}
        checksums["metadata"] = _checksum_of_metadata(metadata)
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items["metadata"] = ocp.args.JsonSave({**metadata, "checksums_v2": checksums})
        check_writable(folder)  # where Orbax cannot write, it keeps the process alive
        with _write_errors(folder):
            manager.wait_until_finished()  # the checkpoint before needs disk space, too
            # Check now: after a failed write, threads of Orbax go on and print errors.
            needed = _MARGIN + sum(leaf.nbytes for leaf in jax.tree.leaves(trees))
            if shutil.disk_usage(folder).free < needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            manager.save(step, args=ocp.args.Composite(**items))
        return checksums["student"]

    try:
        yield save
    finally:
        with _write_errors(folder):
            manager.close()


def steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in `folder`, latest first."""
    with _reading(folder):
        names = os.listdir(folder) if os.path.isdir(folder) else ()
    # Orbax renames a temporary folder when the checkpoint in it is complete.
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def latest_metadata(folder: Path) -> dict[str, Any] | None:
    """Return the metadata of the latest checkpoint whose metadata can be read, else None.

    Add its "step", and "can_go_on": whether a training can resume from it.
    """
    for step in steps(folder):
        try:
            metadata, checksums, _ = _read(folder / str(step))
            return metadata | {"step": step, "can_go_on": "optimizer" in checksums}
        except DamagedCheckpointError as error:
            if not (folder / str(step)).exists():  # a training wrote newer ones meanwhile
                return latest_metadata(folder)
            logger.warning("%s", error)
    return None


def keep_latest(folder: Path) -> None:
    """Remove all checkpoints before the latest, if nothing can resume from that one."""
    if (saved := latest_metadata(folder)) and not saved["can_go_on"]:
        for step in steps(folder):
            if step < saved["step"]:
                with writing(folder):
                    shutil.rmtree(folder / str(step))


def load_latest(folder: Path) -> Checkpoint:
    """Load the latest checkpoint in `folder`, which must have one: see `load`."""
    return load(folder, steps(folder)[0])


def load(folder: Path, step: int) -> Checkpoint:
    """Load a checkpoint as it was written. Raise DamagedCheckpointError if that is impossible."""
    metadata, checksums, student = _read(folder / str(step), "student")
    return Checkpoint(step, student, metadata, checksums["student"])


def load_rest(folder: Path, step: int, like: Any) -> Any:
    """Load the optimiser's state and what else resuming needs, in `like`'s structure.

    Raise DamagedCheckpointError, or UserError if it is the state of another optimiser or model.
    """
    path, like = folder / str(step), {"opt_state": like}
    found = _flat(_read(path, "optimizer")[2])
    kinds = [{n: (a.shape, a.dtype) for n, a in arrays.items()} for arrays in (found, _flat(like))]
    if kinds[0] != kinds[1]:
        raise UserError(
            f"the optimiser's state in checkpoint {path} is of another optimiser or other "
            "networks: go on with those that began it, or start anew with --restart"
        )
    return ocp.tree.from_flat_dict(found, like)["opt_state"]


def checksum(tree: Any) -> int:
    """Return a CRC of the names, shapes, dtypes and bytes of a tree's arrays."""
    sums = [
        (name, leaf.shape, str(leaf.dtype), zlib.crc32(leaf.reshape(-1).view(np.uint8).data))
        for name, leaf in sorted(_flat(tree).items())
    ]
    return zlib.crc32(repr(sums).encode())


def _checksum_of_metadata(metadata: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(metadata, sort_keys=True).encode())


def _flat(tree: Any) -> dict[tuple[str, ...], np.ndarray]:
    """Return a tree's arrays by name. A tree that Orbax restored has the same names."""
    return {name: np.asarray(leaf, order="C") for name, leaf in ocp.tree.to_flat_dict(tree).items()}


def _read(path: Path, item: str | None = None) -> tuple[dict[str, Any], dict[str, int], Any]:
    """Return a checkpoint's metadata, the checksums of its items, and the tree of one of them.

    Raise DamagedCheckpointError, or UserError if the disk or a permission is at fault.
    """
    try:
        metadata = json.loads((path / "metadata" / "metadata").read_text("utf-8"))
        if "checksums_v2" not in metadata:
            raise UserError(f"{path} is of an earlier version of rd_jax: choose another --workdir")
        checksums, tree = metadata.pop("checksums_v2"), None
        found = {"metadata": _checksum_of_metadata(metadata)}
        if item:
            handler = ocp.StandardCheckpointHandler(multiprocessing_options=_alone())
            tree = handler.restore(_Folder((path / item).absolute()))
            found[item] = checksum(tree)
        if not found.items() <= checksums.items():
            raise ValueError("it differs from its checksum")
    except UserError:
        raise
    except Exception as error:  # the storage libraries raise all kinds of errors
        with _reading(path):  # raises if the disk or a permission is at fault
            for file in filter(os.path.isfile, path.rglob("*")):
                Path(file).read_bytes()
        raise DamagedCheckpointError(
            f"checkpoint {path} is damaged ({first_line(error)[:200]}): train again with the same "
            "command, which goes on from the checkpoint before it, if there is one"
        ) from error
    return metadata, checksums, tree


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} cannot be read ({error.strerror}): mend the disk or the "
            "permissions; nothing was changed"
        ) from error


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the storage libraries raise all kinds of errors
        full = os.strerror(errno.ENOSPC)
        reason = f"{full}: free some" if full in str(error) else first_line(error)[:200]
        raise UserError(
            f"cannot write a checkpoint into {folder} ({reason}); earlier ones are still complete, "
            "and the same command goes on from the latest"
        ) from error
