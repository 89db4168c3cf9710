"""Checkpoints that cannot be trusted are noticed, and none that can is lost."""

import errno
import os
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from rd_jax import restore
from rd_jax.config import Config, as_dict
from rd_jax.method.train import TrainState
from rd_jax.run import task
from rd_jax.run.task import initial_state
from rd_jax.store import checkpoint
from rd_jax.store.checkpoint import DamagedCheckpointError
from rd_jax.store.workdir import Training, moved_aside
from rd_jax.system.errors import UserError
from tests.trained import first_state


def state_at(config: Config, step: int) -> TrainState:
    """A state whose every array tells the step."""
    state = first_state(config)
    return jax.tree.map(lambda x: np.full_like(x, step) + np.asarray(x), state)


@pytest.fixture
def training(config: Config, tmp_path: Path) -> Training:
    """A training with checkpoints of the steps 10 and 20."""
    timing = {"train_seconds": 1.0, "images_per_second": None}
    training = Training(tmp_path / "weave", "weave")
    training.folder.mkdir()
    with checkpoint.writer(training.checkpoints) as save:
        for step in (5, 10, 20):
            state = state_at(config, step)
            metadata = {
                "config": as_dict(config),
                "teacher_weights": "random",
                "timing": timing | {"train_seconds": float(step)},
            }
            save(step, state.student_variables, state.rest, metadata)
    return training


def equal(a: object, b: object) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_the_two_latest_are_kept_and_restored_as_they_were(
    config: Config, training: Training
) -> None:
    assert checkpoint.steps(training.checkpoints) == [20, 10]
    state, timing = initial_state(config, training, 40)
    assert int(state.step) == 20
    assert timing["train_seconds"] == 20
    expected = state_at(config, 20)
    assert equal(state.student_variables, expected.student_variables)
    assert equal(state.opt_state, expected.opt_state)
    assert jax.tree.structure(state) == jax.tree.structure(expected)


def damage(checkpoints: Path, item: str, how: str) -> None:
    """The files of the checkpoint of step 20 truncated, altered in a byte, or missing."""
    for path in [p for p in (checkpoints / "20" / item).rglob("*") if p.is_file()]:
        content = bytearray(path.read_bytes())
        if how == "truncated":
            path.write_bytes(content[: len(content) // 2])
        elif how == "altered":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        else:
            path.unlink()


@pytest.mark.parametrize("how", ["truncated", "altered", "missing"])
@pytest.mark.parametrize("item", ["student", "optimizer", "metadata"])
def test_damage_is_noticed_and_training_falls_back(
    config: Config,
    training: Training,
    caplog: pytest.LogCaptureFixture,
    item: str,
    how: str,
) -> None:
    checkpoints = training.checkpoints
    damage(checkpoints, item, how)
    if item != "optimizer":  # which evaluation does not read
        with pytest.raises(DamagedCheckpointError, match=r"checkpoints/20 is damaged \(.*\): "):
            restore(training.folder.parent, training.category)
    state, timing = initial_state(config, training, 40)
    assert int(state.step) == timing["train_seconds"] == 10
    assert equal(state.student_variables, state_at(config, 10).student_variables)
    assert "is damaged" in caplog.text
    assert (training.damaged / "20").is_dir()
    assert checkpoint.steps(checkpoints) == [10]


@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.1, momentum=0.9), optax.adamw(0.1), optax.adam(0.1, mu_dtype="bfloat16")],
)
def test_the_state_of_another_optimiser_is_no_damage(
    config: Config,
    training: Training,
    monkeypatch: pytest.MonkeyPatch,
    optimizer: optax.GradientTransformation,
) -> None:
    monkeypatch.setattr(task, "optimizer_of", lambda _: optimizer)
    with pytest.raises(UserError, match=r"checkpoints/20 is of another optimiser .* --restart"):
        initial_state(config, training, 40)
    assert checkpoint.steps(training.checkpoints) == [20, 10]
    assert not training.damaged.exists()
    assert initial_state(config, training, 20)[0] is None  # finished, so not needed


@pytest.mark.parametrize("item", ["student", "optimizer", "metadata"])
def test_a_disk_that_cannot_be_read_is_no_damage(
    config: Config, training: Training, monkeypatch: pytest.MonkeyPatch, item: str
) -> None:
    damage(training.checkpoints, item, "missing")  # to the libraries, which open files in C++
    read_bytes = Path.read_bytes

    def failing(path: Path) -> bytes:
        if "_CHECKPOINT_METADATA" in path.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(UserError, match=r"checkpoints/20/.* cannot be read \(Input/output error\)"):
        initial_state(config, training, 40)
    assert checkpoint.steps(training.checkpoints) == [20, 10]
    assert not training.damaged.exists()


@pytest.mark.parametrize("name", ["a[b]", "[a]", "a*", "what?", "{a,b}", "[!x]"])
def test_folders_may_be_called_like_patterns(config: Config, tmp_path: Path, name: str) -> None:
    checkpoints = tmp_path / name / "c" / "checkpoints"
    state = jax.tree.map(np.asarray, state_at(config, 3))
    with checkpoint.writer(checkpoints) as save:
        for step in (1, 2, 3):
            save(step, state.student_variables, state.rest, {"config": {}})
    assert checkpoint.steps(checkpoints) == [3, 2]
    assert equal(checkpoint.load(checkpoints, 3).student_variables, state.student_variables)
    assert equal(checkpoint.load_rest(checkpoints, 3, state.rest), state.rest)


def test_the_optimiser_of_a_finished_training_is_left_alone(
    config: Config, training: Training
) -> None:
    damage(training.checkpoints, "optimizer", "missing")
    state, timing = initial_state(config, training, 20)
    assert state is None
    assert timing["train_seconds"] == 20
    kept = checkpoint.load_latest(training.checkpoints).student_variables
    assert equal(kept, state_at(config, 20).student_variables)


def test_any_value_that_changes_changes_the_checksum() -> None:
    rng = np.random.default_rng(0)
    tree = {"a": rng.standard_normal((3, 5)).astype(np.float32), "b": np.int32(7)}
    reference = checkpoint.checksum(tree)
    assert checkpoint.checksum(jax.tree.map(np.array, tree)) == reference
    for i in range(15):
        changed = {**tree, "a": tree["a"].copy()}
        changed["a"].flat[i] = np.nextafter(changed["a"].flat[i], np.float32(9))
        assert checkpoint.checksum(changed) != reference
    assert checkpoint.checksum({**tree, "b": np.int32(8)}) != reference
    assert checkpoint.checksum({**tree, "a": tree["a"].T}) != reference


def test_an_interrupted_save_is_no_checkpoint(training: Training) -> None:
    checkpoints = training.checkpoints
    (checkpoints / "30.orbax-checkpoint-tmp-1").mkdir()
    assert checkpoint.steps(checkpoints) == [20, 10]


def test_a_folder_without_checkpoints_says_so(tmp_path: Path) -> None:
    assert checkpoint.steps(tmp_path / "absent") == []
    with pytest.raises(UserError, match="no checkpoint in"):
        checkpoint.load_latest(tmp_path)


def test_what_is_moved_aside_never_replaces_anything(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / "20").write_text(str(i))
        moved_aside(tmp_path / "20", tmp_path / "damaged")
    kept = {path.name: path.read_text() for path in (tmp_path / "damaged").iterdir()}
    assert kept == {"20": "0", "20.1": "1", "20.2": "2"}
