import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rd_jax import convert_teacher, load_teacher
from rd_jax.system.errors import UserError
from rd_jax.weights import hub
from rd_jax.weights.teacher import find_teacher, teacher_sha256
from tests.reference_weights import draw_state_dict

StateDict = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def state_dict() -> StateDict:
    """A whole torchvision ResNet-18 state dict as far as names matter here."""
    golden = np.load(Path(__file__).parents[1] / "golden" / "resnet18.npz")
    shapes = json.loads(str(golden["shapes"]))["teacher"]
    extra = {"fc.weight": [1000, 512], "layer4.0.conv1.weight": [512, 256, 3, 3]}
    return draw_state_dict(shapes | extra)


def write_npz(state_dict: StateDict, path: Path) -> None:
    np.savez(path, **state_dict)


def write_pth(state_dict: StateDict, path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
    torch.save({name: torch.from_numpy(value) for name, value in state_dict.items()}, path)


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "w.safetensors": save_file,
    "w.npz": write_npz,
    "w.pth": write_pth,
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_weights_load_from_every_format(
    state_dict: StateDict, tmp_path: Path, name: str
) -> None:
    expected = convert_teacher(state_dict, "resnet18")
    WRITERS[name](state_dict, tmp_path / name)
    loaded = load_teacher("resnet18", str(tmp_path / name))
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, expected))
    assert teacher_sha256(loaded) == teacher_sha256(expected)
    assert {"conv1", "bn1"} < set(expected["params"])
    assert not any(name.startswith(("fc", "layer4")) for name in expected["params"])


@pytest.mark.parametrize("name", WRITERS)
def test_tensors_that_are_not_of_real_numbers_are_refused_alike(
    state_dict: StateDict, tmp_path: Path, name: str
) -> None:
    WRITERS[name](state_dict | {"bn1.weight": np.full(64, 1 + 2j, np.complex64)}, tmp_path / name)
    with pytest.raises(UserError, match=r"not of real numbers: bn1\.weight complex64 \(1\)$"):
        load_teacher("resnet18", str(tmp_path / name))


def test_halves_and_doubles_of_pytorch_load_as_float32(
    state_dict: StateDict, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
    tensors = {name: torch.from_numpy(value) for name, value in state_dict.items()}
    tensors["bn1.weight"] = torch.ones(64, dtype=torch.bfloat16, requires_grad=True)
    tensors["bn1.bias"] = torch.full((64,), 0.1, dtype=torch.float64)
    torch.save(tensors | {"bn1.num_batches_tracked": torch.tensor(3)}, tmp_path / "w.pth")
    loaded = load_teacher("resnet18", str(tmp_path / "w.pth"))["params"]["bn1"]
    np.testing.assert_array_equal(loaded["scale"], np.ones(64, np.float32))
    np.testing.assert_array_equal(loaded["bias"], np.full(64, np.float32(0.1)))


def test_pth_files_run_no_code(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
    torch.save({"conv1.weight": Path("code")}, tmp_path / "code.pth")
    with pytest.raises(UserError, match=r"code\.pth is not a state dict of tensors"):
        load_teacher("resnet18", str(tmp_path / "code.pth"))


def test_a_teacher_saved_on_several_gpus_is_the_same(state_dict: StateDict) -> None:
    expected = convert_teacher(state_dict, "resnet18")
    wrapped = {f"module.{name}": value for name, value in state_dict.items()}
    assert teacher_sha256(convert_teacher(wrapped, "resnet18")) == teacher_sha256(expected)


def test_missing_and_misshapen_tensors_are_listed(state_dict: StateDict) -> None:
    broken = dict(state_dict)
    del broken["layer2.0.downsample.0.weight"], broken["bn1.running_var"]
    broken["conv1.weight"] = np.zeros((64, 1, 7, 7), np.float32)
    with pytest.raises(UserError) as error:
        convert_teacher(broken, "resnet18")
    message = str(error.value)
    assert "missing: " in message
    assert "layer2.0.downsample.0.weight" in message
    assert "bn1.running_var" in message
    assert "of another shape: conv1.weight (64, 1, 7, 7)" in message


@pytest.mark.parametrize("name", [*WRITERS, "w.bin"])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, name: str) -> None:
    if name == "w.pth":
        pytest.importorskip("torch", reason="the extra `parity` is not installed")
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(UserError, match=name):
        load_teacher("resnet18", str(tmp_path / name))
    with pytest.raises(UserError, match="is not a file"):
        load_teacher("resnet18", str(tmp_path / "absent.npz"))


def test_a_download_is_verified(
    state_dict: StateDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_file(state_dict, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(path))
    with pytest.raises(UserError, match=rf"model\.safetensors has sha256 {sha256}, expected 694f"):
        load_teacher("resnet18", "imagenet")
    monkeypatch.setitem(hub.IMAGENET, "resnet18", (hub.IMAGENET["resnet18"][0], sha256))
    expected = teacher_sha256(convert_teacher(state_dict, "resnet18"))
    assert find_teacher("resnet18", "imagenet").sha256 == expected


def test_a_downloaded_teacher_is_found_without_network(
    state_dict: StateDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision, _ = hub.IMAGENET["resnet18"]
    path = tmp_path / "models--timm--resnet18.tv_in1k/snapshots" / revision / "model.safetensors"
    path.parent.mkdir(parents=True)
    save_file(state_dict, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setitem(hub.IMAGENET, "resnet18", (revision, sha256))
    assert hub.download("resnet18") == path


def test_a_backbone_without_imagenet_weights_is_told_apart_from_a_failed_download() -> None:
    with pytest.raises(UserError, match="no ImageNet weights of resnet10: choose one of resnet18,"):
        load_teacher("resnet10", "imagenet")


def test_a_hub_that_cannot_even_be_imported_is_as_one_without_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"fetch https://huggingface\.co/timm/resnet34\.tv_in1k/"):
        load_teacher("resnet34", "imagenet")


def test_without_network_imagenet_says_what_to_fetch_and_what_comes_along() -> None:
    with pytest.raises(UserError) as error:
        load_teacher("resnet34", "imagenet")
    said, (revision, _) = str(error.value), hub.IMAGENET["resnet34"]
    address = f"https://huggingface.co/timm/resnet34.tv_in1k/resolve/{revision}/model.safetensors"
    assert f"fetch {address} where" in said
    assert "set --config.teacher_weights=FOLDER/model.safetensors, or use" in said
    assert "--config.backbone=resnet10 --config.teacher_weights=embedded" in said


def test_the_embedded_teacher_is_small_and_of_its_own_networks() -> None:
    path = hub.embedded("resnet10", layer4=False)
    assert path.stat().st_size <= 3_000_000
    half = load_file(path)
    assert {array.dtype for array in half.values()} == {np.dtype(np.float16)}
    variables = load_teacher("resnet10", "embedded")
    assert teacher_sha256(variables) == teacher_sha256(convert_teacher(half, "resnet10"))
    for backbone, layer4 in (("resnet18", False), ("resnet10", True)):
        with pytest.raises(UserError, match="is a resnet10 without its fourth stage: set --config"):
            load_teacher(backbone, "embedded", layer4)


def test_a_random_teacher_says_so_and_each_value_of_a_teacher_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    variables = load_teacher("resnet18", "random")
    assert "RANDOM" in caplog.text
    with jax.default_prng_impl("rbg"):  # whatever generator JAX uses
        again = load_teacher("resnet18", "random")
    assert teacher_sha256(again) == teacher_sha256(variables)
    for value in (1e-3, -1e-3):
        changed = jax.tree.map(np.copy, variables)
        changed["params"]["bn1"]["bias"][0] += value
        assert teacher_sha256(changed) != teacher_sha256(variables)
