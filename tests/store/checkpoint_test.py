"""Checkpoints that cannot be trusted are noticed, and none that can is lost."""

import errno
import json
import logging
import os
import resource
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from rd_jax.store import checkpoint
from rd_jax.store.checkpoint import DamagedCheckpointError
from rd_jax.system import files
from rd_jax.system.errors import UserError

# Orbax closes its event loop while TensorStore still answers for other arrays of a damaged item.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

OPTIMIZER = optax.chain(optax.adam(0.1), optax.ema(0.9))


def student_at(step: int) -> dict[str, Any]:
    """Variables whose every array tells the step."""
    kernel = np.arange(12, dtype=np.float32).reshape(2, 1, 2, 3) + step
    params = {"a": {"kernel": kernel, "bias": np.full(3, step, np.float32)}}
    return {"params": params, "batch_stats": {"a": {"mean": np.full(3, -step, np.float32)}}}


def rest_at(step: int, optimizer: optax.GradientTransformation = OPTIMIZER) -> Any:
    params = student_at(step)["params"]
    _, state = optimizer.update(params, optimizer.init(params), params)
    return {"opt": jax.device_get(state), "key": np.arange(2, dtype=np.uint32) + step}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of the steps 10 and 20, and of 5 before them."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with checkpoint.writer(folder) as save:
        for step in (5, 10, 20):
            save(step, student_at(step), rest_at(step), {"timing": {"train_seconds": step}})
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "checkpoints")


def equal(a: object, b: object) -> bool:
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return all(
        isinstance(x, np.ndarray) and x.dtype == y.dtype and np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_the_two_latest_are_kept_and_read_as_they_were(folder: Path) -> None:
    assert checkpoint.steps(folder) == [20, 10]
    for step in (20, 10):
        found = checkpoint.load(folder, step)
        assert equal(found.student_variables, student_at(step))
        assert equal(checkpoint.load_rest(folder, step, rest_at(0)), rest_at(step))
        assert found.metadata == {"timing": {"train_seconds": step}}
    assert checkpoint.load_latest(folder).step == 20
    expected = {"timing": {"train_seconds": 20}, "step": 20, "can_go_on": True}
    assert checkpoint.latest_metadata(folder) == expected


def test_arrays_of_every_dtype_come_back_as_they_were(tmp_path: Path) -> None:
    student = {
        "params": {
            dtype: np.arange(5).astype(dtype)
            for dtype in ("float32", "float64", "bfloat16", "int32", "uint8", "bool")
        },
        "batch_stats": {"scalar": np.array(3, np.int32)},
    }
    with checkpoint.writer(tmp_path) as save:
        save(1, student, None, {})
    assert equal(checkpoint.load(tmp_path, 1).student_variables, student)


def damage(path: Path, how: str) -> None:
    """The files of an item truncated, altered in a byte, or missing."""
    for file in [p for p in path.rglob("*") if p.is_file()]:
        content = bytearray(file.read_bytes())
        if how == "truncated":
            file.write_bytes(content[: len(content) // 2])
        elif how == "altered":
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        else:
            file.unlink()


@pytest.mark.parametrize("how", ["truncated", "altered", "missing"])
@pytest.mark.parametrize("item", ["student", "optimizer", "metadata"])
def test_damage_is_noticed_and_what_is_whole_is_read(
    folder: Path, caplog: pytest.LogCaptureFixture, item: str, how: str
) -> None:
    damage(folder / "20" / item, how)
    said = rf"checkpoint {folder}/20 is damaged \(.*\): train again"
    if item != "optimizer":  # which evaluation does not read
        with pytest.raises(DamagedCheckpointError, match=said):
            checkpoint.load_latest(folder)
    if item != "student":
        with pytest.raises(DamagedCheckpointError, match=said):
            checkpoint.load_rest(folder, 20, rest_at(0))
    saved = checkpoint.latest_metadata(folder)
    assert saved
    assert saved["step"] == (10 if item == "metadata" else 20)
    assert ("is damaged" in caplog.text) == (item == "metadata")
    assert equal(checkpoint.load(folder, 10).student_variables, student_at(10))


def test_any_byte_that_changes_in_a_file_of_arrays_is_noticed(tmp_path: Path) -> None:
    with checkpoint.writer(tmp_path) as save:
        save(1, student_at(1), None, {})
    rng = np.random.default_rng(0)
    for file in [p for p in (tmp_path / "1" / "student").rglob("*/d/*") if p.is_file()]:
        content = file.read_bytes()
        for position in rng.integers(0, len(content), 10):
            changed = bytearray(content)
            changed[position] ^= 1 << int(rng.integers(8))
            file.write_bytes(changed)
            try:
                found = checkpoint.load(tmp_path, 1).student_variables
            except DamagedCheckpointError:
                continue
            assert equal(found, student_at(1))  # a byte that nothing depends on
        file.write_bytes(content)
    assert checkpoint.load(tmp_path, 1)


def test_any_value_that_changes_changes_the_checksum() -> None:
    rng = np.random.default_rng(0)
    array = rng.standard_normal((3, 5)).astype(np.float32)
    tree = {"a": array, "b": np.int32(7)}
    reference = checkpoint.checksum(tree)
    assert checkpoint.checksum(jax.tree.map(np.array, tree)) == reference
    for i in range(15):
        changed = array.copy()
        changed.flat[i] = np.nextafter(changed.flat[i], np.float32(9))
        assert checkpoint.checksum({**tree, "a": changed}) != reference
    others = {
        "reversed": {**tree, "a": array.ravel()[::-1].reshape(3, 5)},
        "transposed": {**tree, "a": array.T},
        "another shape": {**tree, "a": array.reshape(5, 3)},
        "another dtype": {**tree, "a": array.view(np.int32)},
        "another number": {**tree, "b": np.int32(8)},
        "another name": {"c": array, "b": np.int32(7)},
    }
    for name, other in others.items():
        assert checkpoint.checksum(other) != reference, name
    assert checkpoint.checksum({**tree, "a": np.asfortranarray(array)}) == reference


@pytest.mark.parametrize(
    "optimizer",
    [
        *(optax.chain(optax.sgd(0.1, momentum=0.9), optax.ema(0.9)), optax.adam(0.1)),
        optax.chain(optax.adam(0.1, mu_dtype="bfloat16"), optax.ema(0.9)),
    ],
)
def test_the_state_of_another_optimiser_is_no_damage(
    folder: Path, optimizer: optax.GradientTransformation
) -> None:
    with pytest.raises(
        UserError, match=r"checkpoints/20 is of another optimiser .* --restart"
    ) as e:
        checkpoint.load_rest(folder, 20, rest_at(0, optimizer))
    assert not isinstance(e.value, DamagedCheckpointError)


@pytest.mark.parametrize("item", ["student", "optimizer", "metadata"])
def test_a_disk_that_cannot_be_read_is_no_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, item: str
) -> None:
    damage(folder / "20" / item, "missing")  # to the libraries, which open files in C++
    read_bytes = Path.read_bytes

    def failing(path: Path) -> bytes:
        if "_CHECKPOINT_METADATA" in path.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    reads = [
        lambda: checkpoint.load(folder, 20),
        lambda: checkpoint.load_rest(folder, 20, rest_at(0)),
    ]
    for read in reads[item == "optimizer" : 2 - (item == "student")]:
        with pytest.raises(UserError, match=r"20/.* cannot be read \(Input/output") as caught:
            read()
        assert not isinstance(caught.value, DamagedCheckpointError)


def test_a_folder_that_cannot_be_read_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> list[str]:  # root, as who this may run, is stopped by no permission
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "listdir", fail)
    for read in (checkpoint.steps, checkpoint.latest_metadata, checkpoint.load_latest):
        with pytest.raises(UserError, match=rf"{folder} cannot be read \(Permission denied\)"):
            read(folder)


@pytest.mark.parametrize("name", ["a[b]", "[a]", "a*", "what?", "{a,b}", "[!x]"])
def test_folders_may_be_called_like_patterns(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "c" / "checkpoints"
    with checkpoint.writer(folder) as save:
        for step in (1, 2, 3):
            save(step, student_at(step), rest_at(step), {})
    assert checkpoint.steps(folder) == [3, 2]
    assert equal(checkpoint.load(folder, 3).student_variables, student_at(3))
    assert equal(checkpoint.load_rest(folder, 3, rest_at(0)), rest_at(3))


def test_only_the_last_checkpoint_of_a_finished_training_is_kept(folder: Path) -> None:
    checkpoint.keep_latest(folder)  # which something may go on from
    assert checkpoint.steps(folder) == [20, 10]
    with checkpoint.writer(folder) as save:
        save(30, student_at(30), None, {})
    saved = checkpoint.latest_metadata(folder)
    assert saved == {"step": 30, "can_go_on": False}
    checkpoint.keep_latest(folder)
    assert checkpoint.steps(folder) == [30]
    assert equal(checkpoint.load_latest(folder).student_variables, student_at(30))


def test_a_checkpoint_that_goes_while_it_is_read_is_no_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [*listdir(path), *listed])
    listed = ["30"]
    monkeypatch.setattr(Path, "exists", lambda _: listed.clear() or False)
    saved = checkpoint.latest_metadata(folder)
    assert saved
    assert saved["step"] == 20
    assert not caplog.records


def test_an_interrupted_save_is_no_checkpoint_and_is_cleared_away(folder: Path) -> None:
    (folder / "30.orbax-checkpoint-tmp").mkdir()
    assert checkpoint.steps(folder) == [20, 10]
    with checkpoint.writer(folder) as save:
        save(30, student_at(30), None, {})
    assert sorted(path.name for path in folder.iterdir()) == ["20", "30"]


def test_the_checkpoint_of_an_earlier_version_is_one_line(folder: Path) -> None:
    path = folder / "20" / "metadata" / "metadata"
    path.write_text(json.dumps({"config": {}, "checksums": {"student": 1, "metadata": 2}}))
    with pytest.raises(UserError, match="is of an earlier version of rd_jax: choose another"):
        checkpoint.load_latest(folder)


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert checkpoint.steps(tmp_path / "absent") == []
    (tmp_path / "file").touch()
    assert checkpoint.steps(tmp_path / "file") == []
    assert checkpoint.latest_metadata(tmp_path) is None


def test_a_disk_that_is_full_is_one_line_and_what_was_complete_still_is(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    student = {"params": np.random.default_rng(0).standard_normal(200_000)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # what a full disk is like
    try:
        said = rf"cannot write a checkpoint into {folder} \(.*\); earlier ones are still complete"
        with pytest.raises(UserError, match=said), checkpoint.writer(folder) as save:
            save(30, student, None, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.steps(folder) == [20, 10]
    assert all(path.read_bytes() == content for path, content in before.items())
    with checkpoint.writer(folder) as save:
        save(30, student, None, {})
    assert equal(checkpoint.load_latest(folder).student_variables, student)


def test_a_disk_without_room_for_a_checkpoint_is_named_before_orbax_tries(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(folder)
    student = {"params": np.zeros(2**20, np.float32)}
    said = rf"cannot write a checkpoint into {folder} \(No space left on device: free some\)"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**22 + 2**21))
    with pytest.raises(UserError, match=said), checkpoint.writer(folder) as save:
        save(30, student, None, {})
    assert sorted(path.name for path in folder.iterdir()) == ["10", "20"]


def test_a_folder_that_cannot_be_written_is_named_before_orbax_tries(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.tempfile, "NamedTemporaryFile", full)
    said = f"cannot write {folder}: No space left on device; free some: no earlier file"
    with pytest.raises(UserError, match=said), checkpoint.writer(folder) as save:
        save(30, student_at(30), None, {})
    assert checkpoint.steps(folder) == [20, 10]


def test_reading_in_threads_leaves_the_process_as_it_was(folder: Path) -> None:
    damage(folder / "10" / "student", "altered")
    absl = logging.getLogger("absl")
    before = absl.level, absl.handlers[:], sys.unraisablehook, sys.excepthook

    def read(step: int) -> bool:
        try:
            return equal(checkpoint.load(folder, step).student_variables, student_at(20))
        except DamagedCheckpointError:
            return step == 10

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, [20, 10] * 16))
    assert before == (absl.level, absl.handlers[:], sys.unraisablehook, sys.excepthook)


def test_only_the_first_of_several_processes_writes_and_each_reads_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda *_: 2)
    monkeypatch.setattr(jax, "process_index", lambda *_: 1)
    with checkpoint.writer(folder) as save:
        save(30, student_at(30), None, {})
    assert checkpoint.steps(folder) == [20, 10]
    assert equal(checkpoint.load_latest(folder).student_variables, student_at(20))
