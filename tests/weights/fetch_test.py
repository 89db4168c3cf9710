"""`python -m rd_jax.weights`: a teacher's weights, to carry to a machine without a network."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from rd_jax import load_teacher
from rd_jax.weights import __main__ as fetch
from rd_jax.weights import hub
from tests.command import Done, assert_one_line, captured
from tests.reference_weights import draw_state_dict


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a ResNet-18 in a cache of Hugging Face, as a download leaves it."""
    golden = np.load(Path(__file__).parents[1] / "golden" / "resnet18.npz")
    revision, _ = hub.IMAGENET["resnet18"]
    snapshot = tmp_path / "models--timm--resnet18.tv_in1k" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    path = snapshot / "model.safetensors"
    save_file(draw_state_dict(json.loads(str(golden["shapes"]))["teacher"]), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setitem(hub.IMAGENET, "resnet18", (revision, sha256))
    return path


def fetched(*arguments: object) -> Done:
    return captured(fetch.main, list(map(str, arguments)))


def test_the_file_is_the_teacher_that_training_would_download(cached: Path, tmp_path: Path) -> None:
    done = fetched("resnet18", "--output", tmp_path / "to_carry")
    path = tmp_path / "to_carry" / "resnet18.safetensors"
    assert done.returncode == 0, done.stderr
    flags = f"--config.backbone=resnet18 --config.teacher_weights={path}"
    assert done.stdout == f"{path}: train with {flags}\n"
    expected = load_teacher("resnet18", "imagenet")
    cached.unlink()  # the other machine has the one file
    found = load_teacher("resnet18", str(path))
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))


def test_a_damaged_download_leaves_no_file(cached: Path, tmp_path: Path) -> None:
    cached.write_bytes(cached.read_bytes()[:-1])
    done = fetched("resnet18", "--output", tmp_path / "to_carry")
    assert_one_line(done, "delete that file and start again")
    assert not (tmp_path / "to_carry" / "resnet18.safetensors").exists()


def test_weights_that_cannot_be_fetched_are_one_line(tmp_path: Path) -> None:
    assert_one_line(fetched("resnet34", "--output", tmp_path), "fetch https://huggingface.co/timm/")
    assert_one_line(fetched("resnet10", "--output", tmp_path), "choose from")
    assert_one_line(fetched("resnet18"), "--output")
    assert list(tmp_path.iterdir()) == []
