"""What stays on the devices during a training, and that it changes nothing."""

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from rd_jax import Model
from rd_jax.config import get_config
from rd_jax.data import Joined
from rd_jax.data.order import first_epoch
from rd_jax.method.loss import LOSSES
from rd_jax.method.train import Batch
from rd_jax.run import batches, programs
from rd_jax.run.plan import Plan, optimizer_of
from rd_jax.run.programs import encoder, kept_of
from rd_jax.store.workdir import Workdir
from rd_jax.system import memory
from rd_jax.weights.teacher import find_teacher
from tests.command import succeeded, training
from tests.reference_weights import draw_images
from tests.run.conftest import HOLDOUT, KEPT, LAST_STEP
from tests.run.leaves import assert_same_leaves, leaves
from tests.trained import largest_difference

# Of an image of 64 pixels, of the tiny network: 8, 16 and 32 channels.
FEATURES_BYTES = 4 * (16 * 16 * 8 + 8 * 8 * 16 + 4 * 4 * 32)
IMAGE_BYTES = 64 * 64 * 3


def kept_of_a_plan(num_images: int, **changes: Any) -> str:
    """What stays, by the config and the number of images that are trained on."""
    config = get_config(backbone="tiny", image_size=64, dtype="float32", **changes)
    learning = LOSSES["mixed"], optimizer_of(config)
    place = Workdir(Path("runs")).training("weave")
    category: Any = SimpleNamespace(num_train=num_images)
    return kept_of(Plan(config, (category,), place, *learning))


def test_batches_of_what_is_kept_are_the_batches_that_are_sent() -> None:
    """10 of 13 images in two arrays, in batches of 8 on 4 devices."""
    model, images = Model("tiny", direction="forward"), draw_images(13, 32)
    joined, chosen = Joined([images[:5], images[5:]]), np.array([12, 1, 2, 3, 4, 5, 6, 7, 9, 11])
    teacher = find_teacher("tiny", "random").variables
    encode = partial(encoder(model, "teacher features", (8, 32, 32, 3)), teacher)
    encoded: list[jax.Array] = []

    def counted(images: jax.Array) -> Batch:
        encoded.append(images)
        return encode(images)

    chunks = first_epoch(1, len(chosen), 8)
    sending, keeping, going_on = (
        batches.Batches(take, len(chosen), 8, seed=1)
        for take in (
            batches.streamed(joined, chosen),
            *(batches.kept(counted, joined, chosen, chunks) for _ in range(2)),
        )
    )
    first = keeping.of_steps(0, 1, 1)
    assert len(encoded) == 1  # the first batch alone
    sent, taken, later = (x.of_steps(0, 2, 3) for x in (sending, keeping, going_on))
    np.testing.assert_array_equal(encoded[0].reshape(first.images.shape), first.images)
    assert len(encoded) == 4
    for a, b in zip(*map(jax.tree.leaves, (taken, later)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(len(x.sharding.device_set) == 4 for x in jax.tree.leaves(taken))
    assert taken.images.shape == sent.images.shape == (4, 3, 2, 32, 32, 3)
    np.testing.assert_array_equal(taken.images, sent.images)
    assert len(np.unique(sent.images[:, :2].reshape(16, -1), axis=0)) == len(chosen)
    features = model.teacher_features(teacher, sent.images.reshape(24, 32, 32, 3))
    for own, expected in zip(taken.teacher_features, features, strict=True):
        np.testing.assert_allclose(own.reshape(expected.shape), expected, atol=1e-5)
        assert np.ptp(expected) > 0.1


@pytest.mark.parametrize(("platform", "beyond"), [("cpu", "nothing"), ("gpu", "images")])
def test_features_stay_where_they_fit_into_a_quarter_of_the_free_memory(
    monkeypatch: pytest.MonkeyPatch, platform: str, beyond: str
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(programs, "free_bytes", lambda: 4 * 10 * FEATURES_BYTES)
    assert kept_of_a_plan(10) == "teacher features"
    assert kept_of_a_plan(11) == beyond
    assert kept_of_a_plan(10, num_epochs=1) == beyond  # each image is used once
    assert kept_of_a_plan(10, keep_features=False) == beyond
    assert kept_of_a_plan(10, direction="forward") == beyond  # which needs the images, too
    assert kept_of_a_plan(11, keep_features=True, num_epochs=1) == "teacher features"
    assert kept_of_a_plan(10 * FEATURES_BYTES // IMAGE_BYTES + 1) == "nothing"
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert kept_of_a_plan(10) == beyond
    assert kept_of_a_plan(10, keep_features=True) == "teacher features"


def test_free_memory_is_the_least_of_the_devices_and_of_what_a_container_may_take(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Device:
        def __init__(self, limit: int) -> None:
            self.stats = {"bytes_limit": limit, "bytes_in_use": 30}

        def memory_stats(self) -> dict[str, int]:
            return self.stats

    meminfo, unlimited, limit = (tmp_path / name for name in ("meminfo", "max", "limit"))
    meminfo.write_text("MemTotal:  9000 kB\nMemAvailable:   4000 kB\n")
    unlimited.write_text("max\n")
    limit.write_text(f"{2000 * 1024}\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_LIMITS", (unlimited, tmp_path / "absent"))
    assert memory.free_bytes() == 1000 * 1024  # a quarter for each of four devices
    monkeypatch.setattr(memory, "_LIMITS", (unlimited, limit))
    assert memory.free_bytes() == 500 * 1024
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(100), Device(90)])
    assert memory.free_bytes() == 60


def test_a_training_goes_on_without_the_features_that_it_kept_and_says_so(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "copy")
    shutil.rmtree(workdir / "weave" / "checkpoints" / str(LAST_STEP))  # back to epoch 1
    again = ("--config.category=weave", "--config.keep_features=False")
    done = succeeded(*training(data_dir, workdir, *HOLDOUT, *KEPT, *again))
    says = "weave: from step 2 on with nothing kept on the devices, before with teacher features"
    assert says in done.stderr
    assert largest_difference(leaves(workdir / "weave"), leaves(trained / "weave")) < 1e-3
    at_once = succeeded(*training(data_dir, tmp_path / "new", *HOLDOUT, *KEPT, *again))
    assert "on the devices: nothing" in at_once.stderr
    assert_same_leaves(tmp_path / "new" / "weave", workdir / "weave")
