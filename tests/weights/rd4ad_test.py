"""Checkpoints of the authors' code."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from rd_jax import Model, load_teacher, make_scorer
from rd_jax.method.models import BACKBONES
from rd_jax.method.models.blocks import BottleneckBlock
from rd_jax.method.models.teacher import Backbone
from rd_jax.system.errors import UserError
from rd_jax.weights.teacher import load_rd4ad
from tests.reference_weights import draw_state_dict

torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")


def draw_tensors(module: torch.nn.Module) -> dict:
    shapes = {
        name: tuple(value.shape)
        for name, value in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    return {name: torch.from_numpy(v) for name, v in draw_state_dict(shapes).items()}


def write_checkpoint(path: Path, backbone: str) -> dict:
    """A .pth as the authors' code writes it, and what it holds."""
    from benchmarks import torch_reference as reference

    bottleneck, student = reference.Bottleneck(backbone), reference.Student(backbone)
    bottleneck.load_state_dict(draw_tensors(bottleneck), strict=False)
    student.load_state_dict(draw_tensors(student), strict=False)
    unused = {"conv4.weight": torch.ones(3, 3, 1, 1), "bn4.weight": torch.ones(3)}
    saved = {
        "bn": bottleneck.state_dict() | unused | {"memory0.keys": torch.ones(2, 5)},
        "decoder": student.state_dict(),
    }
    torch.save(saved, path)
    return saved


def test_maps_of_real_images_equal_pytorch(
    tmp_path: Path, bottle_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import torch_reference as reference

    # As wide as wide_resnet50_2, with one block a stage: it compiles in a quarter of the time.
    backbone, blocks = "wide_resnet14_2", (1, 1, 1, 1)
    monkeypatch.setitem(BACKBONES, backbone, Backbone(BottleneckBlock, blocks, base_width=128))
    monkeypatch.setitem(reference.STAGES, backbone, ("bottleneck", blocks, 128))
    saved = write_checkpoint(tmp_path / "rd4ad.pth", backbone)
    modules = (
        reference.Teacher(backbone).eval(),
        reference.Bottleneck(backbone).eval(),
        reference.Student(backbone).eval(),
    )
    teacher, bottleneck, student = modules
    teacher.load_state_dict(draw_tensors(teacher), strict=False)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    bottleneck.load_state_dict(saved["bn"], strict=False)
    student.load_state_dict(saved["decoder"])
    paths = sorted(bottle_dir.glob("bottle/test/*/000.png"))[:2]
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    assert images.shape == (2, 256, 256, 3)
    with torch.no_grad():
        features = teacher(reference.normalize(torch.from_numpy(images)))
        upsampled = reference.upsampled_map(features, student(bottleneck(features)), 256)
    expected = np.stack([gaussian_filter(image, sigma=4) for image in upsampled.numpy()])

    student_variables = load_rd4ad(tmp_path / "rd4ad.pth", backbone)
    teacher_variables = load_teacher(backbone, str(tmp_path / "teacher.pth"))
    maps, _ = make_scorer(Model(backbone))(teacher_variables, student_variables, images)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(maps, expected, atol=1e-4)


def test_a_file_saved_on_several_gpus_is_the_same(tmp_path: Path) -> None:
    saved = write_checkpoint(tmp_path / "one.pth", "resnet10")
    expected = load_rd4ad(tmp_path / "one.pth", "resnet10")
    wrapped = {
        key: {f"module.{name}": value for name, value in state_dict.items()}
        for key, state_dict in saved.items()
    }
    torch.save(wrapped, tmp_path / "several.pth")
    found = load_rd4ad(tmp_path / "several.pth", "resnet10")
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))


def test_a_file_of_another_kind_or_backbone_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "resnet10.pth", "resnet10")
    with pytest.raises(UserError, match="resnet18"):
        load_rd4ad(tmp_path / "resnet10.pth", "resnet18")
    torch.save({"bn": {}, "model": {}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth has no state dict decoder"):
        load_rd4ad(tmp_path / "other.pth", "resnet10")
    torch.save({"bn": {}, "decoder": {"conv1.weight": 3}}, tmp_path / "number.pth")
    with pytest.raises(UserError, match=r"number\.pth is not a state dict of tensors"):
        load_rd4ad(tmp_path / "number.pth", "resnet10")
    with pytest.raises(UserError, match=r"absent\.pth"):
        load_rd4ad(tmp_path / "absent.pth", "resnet10")
