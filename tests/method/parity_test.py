"""Features, maps, gradients and statistics equal those of the authors' networks in PyTorch."""

import json
from collections import Counter
from functools import cache, lru_cache
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from PIL import Image
from scipy import ndimage

from rd_jax import (
    Model,
    TrainState,
    anomaly_map,
    convert_rd4ad,
    convert_teacher,
    flattened_cosine_loss,
    image_score,
    make_train_step,
    normalize,
    per_position_cosine_loss,
)
from rd_jax.method.models import BACKBONES, Teacher, cpu
from rd_jax.method.models.blocks import BottleneckBlock
from rd_jax.method.models.teacher import Backbone
from tests.method.networks import OPTIMIZER, descents, forward_of, step_of
from tests.method.train_test import largest_difference
from tests.reference_weights import draw_images, draw_state_dict, sample

REAL_BACKBONES = [name for name in BACKBONES if "resnet" in name]
# One block and two of the one kind, and many wide ones of the other.
COMPUTED = ("resnet10", "resnet18", "wide_resnet50_2")
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True, scope="module")
def _own_convolutions_where_they_matter() -> None:
    """Own ones equal XLA's by convolution_test.py; with them, few networks are compiled here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "_is_on_cpu", lambda: False)
        yield


def reference_module():
    pytest.importorskip("torch", reason="the extra `parity` is not installed")
    from tests import make_golden

    return make_golden


def relative_error(actual: jax.Array, expected: np.ndarray) -> float:
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def converted(backbone: str, state_dicts: dict[str, dict]) -> tuple[dict, dict]:
    """Teacher's and student's variables of PyTorch's."""
    student = convert_rd4ad(state_dicts["bottleneck"], state_dicts["student"], backbone)
    return convert_teacher(state_dicts["teacher"], backbone), student


def golden_shapes(backbone: str) -> dict[str, dict]:
    """Of all tensors of the networks that a golden file is of."""
    with np.load(GOLDEN / f"{backbone}.npz") as golden:
        return json.loads(str(golden["shapes"]))


@lru_cache(maxsize=1)
def drawn_variables(backbone: str) -> tuple[dict, dict]:
    """Teacher's and student's of the weights that the golden files were made with."""
    shapes = golden_shapes(backbone)
    return converted(backbone, {name: draw_state_dict(shapes[name]) for name in shapes})


@pytest.mark.parametrize("backbone", [name for name in REAL_BACKBONES if name not in COMPUTED])
def test_names_and_shapes_are_those_of_pytorch_for_other_numbers_of_blocks(backbone: str) -> None:
    zeros = {
        network: {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        for network, shapes in golden_shapes(backbone).items()
    }
    teacher, student = converted(backbone, zeros)
    stages = Counter(name[:6] for name in teacher["params"] if name.startswith("layer"))
    assert [*stages.values()] == [*BACKBONES[backbone].stage_sizes[:3]]
    assert student.keys() == {"params", "batch_stats"}


@pytest.mark.parametrize("backbone", COMPUTED)
def test_networks_losses_and_map_equal_pytorch_golden_files(backbone: str) -> None:
    golden = np.load(GOLDEN / f"{backbone}.npz")
    forward = forward_of(backbone)
    features, embedding, student = forward(*drawn_variables(backbone), draw_images(2, 64))
    for i in range(3):
        assert relative_error(sample(features[i]), golden[f"teacher{i}"]) < 1e-4
        assert relative_error(sample(student[i]), golden[f"student{i}"]) < 1e-4
    assert relative_error(sample(embedding), golden["embedding"]) < 1e-4
    maps = anomaly_map(features, student, 64)
    np.testing.assert_allclose(sample(maps), golden["maps"], atol=1e-4)
    for loss, name in (
        (per_position_cosine_loss, "per_position"),
        (flattened_cosine_loss, "flattened"),
    ):
        np.testing.assert_allclose(loss(features, student), golden[name], atol=1e-4)


def test_every_value_of_wide_blocks_equals_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of basic blocks do so below, of images that are not square."""
    backbone = "wide_resnet14_2"
    make_golden = reference_module()
    import torch

    stages = make_golden.reference.STAGES
    monkeypatch.setitem(stages, backbone, ("bottleneck", (1, 1, 1, 1), 128))
    wide = Backbone(BottleneckBlock, (1, 1, 1, 1), base_width=128)
    monkeypatch.setitem(BACKBONES, backbone, wide)
    modules, shapes = make_golden.networks(backbone)
    variables = converted(backbone, {name: draw_state_dict(shapes[name]) for name in shapes})
    images = draw_images(2, 64, seed=7)
    with torch.no_grad():
        scaled = make_golden.reference.normalize(torch.from_numpy(images))
        expected = modules["teacher"](scaled)
        expected_student = modules["student"](modules["bottleneck"](expected))
    features, _, student = forward_of(backbone)(*variables, images)
    for own, other in zip((*features, *student), (*expected, *expected_student), strict=True):
        assert relative_error(own, make_golden.channels_last(other)) < 1e-4


def test_real_teacher_equals_pytorch_on_real_images(resnet18_npz: Path, bottle_dir: Path) -> None:
    make_golden = reference_module()
    import torch

    paths = sorted(bottle_dir.glob("bottle/test/*/000.png"))
    images = np.array([np.asarray(Image.open(p).convert("RGB").resize((256, 256))) for p in paths])
    module = make_golden.reference.Teacher("resnet18").eval()
    with np.load(resnet18_npz) as archive:
        state = dict(archive)
    missing, _ = module.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, False)
    assert all(name.endswith("num_batches_tracked") for name in missing)
    with torch.no_grad():
        expected = module(make_golden.reference.normalize(torch.from_numpy(images)))
    variables = convert_teacher(state, "resnet18")
    features = jax.jit(Teacher("resnet18").apply)(variables, normalize(images))
    for own, other in zip(features, expected, strict=True):
        assert relative_error(own, make_golden.channels_last(other)) < 1e-4


@cache
def adam_step():
    """Jitted, with the share of the per-position loss as last argument; the rest is flattened."""
    model, optimizer = Model("resnet10"), optax.adam(0.005, 0.5, 0.999)

    def step(state, teacher, images, share):
        def loss(*features):
            of_both = per_position_cosine_loss(*features), flattened_cosine_loss(*features)
            return share * of_both[0] + (1 - share) * of_both[1]

        return make_train_step(model, optimizer, loss)(state, teacher, images)

    return optimizer, jax.jit(step)


@pytest.mark.parametrize("loss", ["per_position", "flattened"])
def test_three_steps_of_adam_equal_pytorch(loss: str) -> None:
    golden = np.load(GOLDEN / f"adam_{loss}.npz")
    teacher, variables = drawn_variables("resnet10")
    optimizer, step = adam_step()
    state = TrainState(**variables, opt_state=optimizer.init(variables["params"]), step=np.int32(0))
    losses = []
    for i in range(3):
        share = np.float32(loss == "per_position")
        state, metrics = step(state, teacher, draw_images(4, 64, seed=i), share)
        losses.append(float(metrics["loss"]))
        if i == 0:
            variance = state.batch_stats["bottleneck"]["bn_layer_0"]["bn1"]["var"]
            np.testing.assert_allclose(variance, golden["running_var"], rtol=1e-4)
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-3)


def check_step(model: Model, before: TrainState, teacher: dict, images, wanted: dict) -> None:
    """A step on the per-position loss has the gradients and statistics of the reference."""
    after, _ = step_of(model, "per_position")(before, teacher, images)
    assert largest_difference(after.batch_stats, wanted["batch_stats"]) < 1e-4
    gradients = descents(before.params, after.params)
    for own, other in zip(*map(jax.tree.leaves, (gradients, wanted["params"])), strict=True):
        # Differences of numbers of the size of 1 in float32, of which a step is a tenth.
        np.testing.assert_allclose(own, other, atol=1e-2 * np.abs(other).max() + 1e-5)


def state_of(variables: dict) -> TrainState:
    return TrainState(**variables, opt_state=OPTIMIZER.init(variables["params"]), step=0)


def values_after(module) -> dict[str, np.ndarray]:
    """A PyTorch module's statistics and, in the place of its parameters, their gradients."""
    state = module.state_dict()
    state |= {name: parameter.grad for name, parameter in module.named_parameters()}
    return {name: value.numpy() for name, value in state.items() if value.ndim}


def test_images_that_are_not_square_give_pytorchs_map_gradients_and_statistics() -> None:
    make_golden = reference_module()
    import torch

    reference, size = make_golden.reference, (96, 64)
    modules, _ = make_golden.networks("resnet10")
    teacher, variables = drawn_variables("resnet10")
    images = draw_images(2, size[0])[:, :, : size[1]]
    with torch.no_grad():
        expected = modules["teacher"](reference.normalize(torch.from_numpy(images)))
        expected_student = modules["student"](modules["bottleneck"](expected))
        upsampled = reference.upsampled_map(expected, expected_student, size)
    features, _, student = forward_of("resnet10")(teacher, variables, images)
    for own, other in zip((*features, *student), (*expected, *expected_student), strict=True):
        assert relative_error(own, make_golden.channels_last(other)) < 1e-4
    maps = anomaly_map(features, student, size)
    blurred = np.stack([ndimage.gaussian_filter(m, 4) for m in upsampled.numpy()])
    np.testing.assert_allclose(maps, blurred, atol=1e-5)
    np.testing.assert_allclose(image_score(maps), blurred.max((1, 2)), atol=1e-5)

    bottleneck, decoder = modules["bottleneck"].train(), modules["student"].train()
    reference.per_position_loss(expected, decoder(bottleneck(expected))).backward()
    wanted = convert_rd4ad(values_after(bottleneck), values_after(decoder), "resnet10")
    check_step(Model("resnet10"), state_of(variables), teacher, images, wanted)


def test_forward_distillation_has_pytorchs_features_gradients_and_statistics() -> None:
    make_golden = reference_module()
    import torch

    reference, drawn = make_golden.reference, []
    modules = [reference.Teacher("resnet10").eval() for _ in range(2)]
    for module, sign in zip(modules, (1, -1), strict=True):  # two networks, not one twice
        shapes = {k: v.shape for k, v in module.state_dict().items() if v.ndim}
        state = {k: sign * v if v.ndim == 4 else v for k, v in draw_state_dict(shapes).items()}
        module.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=False)
        drawn.append(convert_teacher(state, "resnet10"))
    teacher, student = modules
    images = draw_images(2, 64)
    scaled = reference.normalize(torch.from_numpy(images))
    with torch.no_grad():
        expected = [make_golden.channels_last(x) for x in student(scaled)]
        of_teacher = teacher(scaled)
    model = Model("resnet10", direction="forward")
    variables = {name: {"student": tree} for name, tree in drawn[1].items()}
    features = jax.jit(lambda v: model.student_features(None, v, images, ()))(variables)
    for own, other in zip(features, expected, strict=True):
        assert relative_error(own, other) < 1e-4

    reference.per_position_loss(of_teacher, student.train()(scaled)).backward()
    converted = convert_teacher(values_after(student), "resnet10")
    wanted = {name: {"student": tree} for name, tree in converted.items()}
    check_step(model, state_of(variables), drawn[0], images, wanted)
