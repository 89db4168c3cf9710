import hashlib
import json
import sys
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rd_jax import convert_teacher, load_teacher
from rd_jax.system.errors import UserError
from rd_jax.weights import embedded, hub
from rd_jax.weights.convert import to_state_dict
from rd_jax.weights.teacher import find_teacher, teacher_sha256


@pytest.fixture(scope="module")
def state_dict() -> dict[str, np.ndarray]:
    """A whole torchvision ResNet-18 state dict as far as names matter here."""
    from tests.reference_weights import draw_state_dict

    golden = np.load(Path(__file__).parents[1] / "golden" / "resnet18.npz")
    shapes = json.loads(str(golden["shapes"]))["teacher"]
    extra = {"fc.weight": [1000, 512], "layer4.0.conv1.weight": [512, 256, 3, 3]}
    return draw_state_dict(shapes | extra)


def test_the_same_weights_load_from_every_format(
    state_dict: dict[str, np.ndarray], tmp_path: Path
) -> None:
    expected = convert_teacher(state_dict, "resnet18")
    save_file(state_dict, tmp_path / "w.safetensors")
    np.savez(tmp_path / "w.npz", **state_dict)
    for name in ("w.safetensors", "w.npz"):
        loaded = load_teacher("resnet18", str(tmp_path / name))
        assert jax.tree.all(jax.tree.map(np.array_equal, loaded, expected))
        assert teacher_sha256(loaded) == teacher_sha256(expected)
    assert {"conv1", "bn1"} < set(expected["params"])
    assert not any(name.startswith(("fc", "layer4")) for name in expected["params"])


def test_a_state_dict_comes_back_from_the_variables(state_dict: dict[str, np.ndarray]) -> None:
    back = to_state_dict(convert_teacher(state_dict, "resnet18"))
    assert back.keys() == {n for n in state_dict if not n.startswith(("fc", "layer4"))}
    assert all(np.array_equal(value, state_dict[name]) for name, value in back.items())


def test_pth_files_load_and_run_no_code(state_dict: dict[str, np.ndarray], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
    tensors = {name: torch.from_numpy(value) for name, value in state_dict.items()}
    torch.save(tensors, tmp_path / "w.pth")
    loaded = load_teacher("resnet18", str(tmp_path / "w.pth"))
    assert teacher_sha256(loaded) == teacher_sha256(convert_teacher(state_dict, "resnet18"))
    torch.save({"conv1.weight": Path("code")}, tmp_path / "code.pth")
    with pytest.raises(UserError, match=r"code\.pth is not a state dict of tensors"):
        load_teacher("resnet18", str(tmp_path / "code.pth"))


def test_missing_and_misshapen_tensors_are_listed(state_dict: dict[str, np.ndarray]) -> None:
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


@pytest.mark.parametrize("name", ["w.safetensors", "w.npz", "w.pth", "w.bin"])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, name: str) -> None:
    if name == "w.pth":
        pytest.importorskip("torch", reason="the extra `parity` is not installed")
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(UserError, match=name):
        load_teacher("resnet18", str(tmp_path / name))
    with pytest.raises(UserError, match="is not a file"):
        load_teacher("resnet18", str(tmp_path / "absent.npz"))


def test_a_download_is_verified(
    state_dict: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(state_dict, tmp_path / "model.safetensors")
    sha256 = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *_, **__: str(tmp_path / "model.safetensors")
    )
    with pytest.raises(UserError, match=rf"model\.safetensors has sha256 {sha256}, expected 694f"):
        load_teacher("resnet18", "imagenet")
    pinned = hub.IMAGENET["resnet18"]._replace(sha256=sha256)
    monkeypatch.setitem(hub.IMAGENET, "resnet18", pinned)
    expected = teacher_sha256(convert_teacher(state_dict, "resnet18"))
    assert find_teacher("resnet18", "imagenet").sha256 == expected


def test_a_backbone_without_imagenet_weights_is_told_apart_from_a_failed_download() -> None:
    with pytest.raises(UserError, match="no ImageNet weights of resnet10: choose one of resnet18,"):
        load_teacher("resnet10", "imagenet")


def test_a_hub_that_cannot_even_be_imported_is_as_one_without_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"fetch https://huggingface\.co/timm/resnet34\.tv_in1k/"):
        load_teacher("resnet34", "imagenet")


def test_the_random_teacher_is_the_same_whatever_generator_jax_uses() -> None:
    expected = teacher_sha256(load_teacher("resnet18", "random"))
    with jax.default_prng_impl("rbg"):
        assert teacher_sha256(load_teacher("resnet18", "random")) == expected


def test_without_network_imagenet_says_what_to_fetch_and_what_comes_along() -> None:
    with pytest.raises(UserError) as error:
        load_teacher("resnet34", "imagenet")
    said = str(error.value)
    assert "fetch https://huggingface.co/timm/resnet34.tv_in1k/" in said
    assert "set --config.teacher_weights=FOLDER/model.safetensors, or take" in said
    assert "--config.backbone=resnet10 --config.teacher_weights=embedded" in said


def test_the_embedded_teacher_is_small_verified_and_of_its_own_networks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = embedded.embedded("resnet10", layer4=False)
    assert path.stat().st_size <= 3_000_000
    half = load_file(path)
    assert {array.dtype for array in half.values()} == {np.dtype(np.float16)}
    variables = load_teacher("resnet10", "embedded")
    assert teacher_sha256(variables) == teacher_sha256(convert_teacher(half, "resnet10"))
    for backbone, layer4 in (("resnet18", False), ("resnet10", True)):
        with pytest.raises(UserError, match="is a resnet10 without its fourth stage: set --config"):
            load_teacher(backbone, "embedded", layer4)
    monkeypatch.setattr(embedded, "SHA256", "another")
    with pytest.raises(UserError, match=r"resnet10\.safetensors has sha256 .*: install"):
        load_teacher("resnet10", "embedded")


def test_a_random_teacher_says_so_and_each_value_of_a_teacher_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    variables = load_teacher("resnet18", "random")
    assert "RANDOM" in caplog.text
    for value in (1e-3, -1e-3):
        changed = jax.tree.map(np.copy, variables)
        changed["params"]["bn1"]["bias"][0] += value
        assert teacher_sha256(changed) != teacher_sha256(variables)
