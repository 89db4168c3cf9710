"""Each switch of the ablations changes exactly what it names."""

from pathlib import Path

import jax
import numpy as np
import pytest

from rd_jax import convert_teacher, load_teacher
from rd_jax.config import Config
from rd_jax.method.models import BACKBONES, Bottleneck
from rd_jax.method.models.blocks import BottleneckBlock
from rd_jax.method.models.bottleneck import join_variables
from rd_jax.method.models.teacher import Backbone
from rd_jax.run.plan import model_of, teacher_of
from rd_jax.run.scoring import score_images
from rd_jax.run.trained import bound_scorer
from rd_jax.system.errors import UserError
from rd_jax.weights.hub import IMAGENET
from tests.reference_weights import draw_images, draw_state_dict
from tests.trained import first_state, train_step_of


def num_parameters(tree: dict) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_pretrained_bottleneck_is_frozen_and_all_else_is_trained(
    config: Config,
) -> None:
    full = first_state(config)
    config.bottleneck = "pre"
    before = first_state(config)
    assert set(before.params) == set(before.batch_stats) == {"student"}
    assert num_parameters(before.params) == num_parameters(full.params["student"])
    teacher = load_teacher("tiny", "random", layer4=True)
    images = draw_images(4, 32)
    after, _ = train_step_of(config)(before, teacher, images)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for name in ("params", "batch_stats"):
        changed = jax.tree.map(np.array_equal, getattr(before, name), getattr(after, name))
        assert not any(jax.tree.leaves(changed))
    loaded, student = teacher_of(config), after.student_variables
    scores = score_images(bound_scorer(config, loaded, student), images, 4)[1]
    stage = loaded.variables["params"]["layer4_0"]
    stage["conv1"] = {"kernel": -stage["conv1"]["kernel"]}
    other = score_images(bound_scorer(config, loaded, student), images, 4)[1]
    assert np.abs(scores - other).min() > 0


@pytest.mark.parametrize("backbone", ["resnet10", "resnet14"])  # one of each kind of block
def test_the_pretrained_bottleneck_is_the_teachers_fourth_stage(
    monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
    from benchmarks import torch_reference as reference
    from tests.make_golden import channels_last

    blocks = (1, 1, 1, 1)
    monkeypatch.setitem(BACKBONES, "resnet14", Backbone(BottleneckBlock, blocks))
    monkeypatch.setitem(reference.STAGES, "resnet14", ("bottleneck", blocks, 64))
    module = reference.Teacher(backbone)
    module.layer4 = module.stage(256 * module.expansion, 512, module.blocks[3], 2)
    module.eval()
    shapes = {
        name: tuple(value.shape)
        for name, value in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    drawn = draw_state_dict(shapes)
    module.load_state_dict({k: torch.from_numpy(v) for k, v in drawn.items()}, strict=False)
    x = np.random.default_rng(0).standard_normal((2, 3, 64, 64), np.float32)
    with torch.no_grad():
        features = module(torch.from_numpy(x))
        expected = channels_last(module.layer4(features[2]))

    teacher = convert_teacher(drawn, backbone, layer4=True)
    student = {"params": {}, "batch_stats": {}}
    variables = join_variables("pre", teacher, student)
    own = {collection: tree["bottleneck"] for collection, tree in variables.items()}
    apply = jax.jit(Bottleneck(backbone, "pre").apply)
    embedding = apply(own, tuple(map(channels_last, features)))
    assert np.abs(embedding - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_pretrained_bottleneck_needs_weights_of_the_fourth_stage(resnet18_npz: Path) -> None:
    with pytest.raises(UserError, match=r"fourth stage, for bottleneck 'pre'.*missing: layer4\.0"):
        load_teacher("resnet18", str(resnet18_npz), layer4=True)


def test_oce_alone_leaves_the_fusion_out(config: Config) -> None:
    full = first_state(config).params
    config.bottleneck = "oce"
    alone = first_state(config).params
    fusion = {"conv1", "conv2", "conv3", "bn1", "bn2", "bn3"}
    assert set(full["bottleneck"]) - set(alone["bottleneck"]) == fusion
    assert num_parameters(full["student"]) == num_parameters(alone["student"])


@pytest.mark.parametrize("backbone", ["resnet10", *IMAGENET])
def test_the_backbone_is_that_of_both_trained_networks(config: Config, backbone: str) -> None:
    torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
    from benchmarks import torch_reference as reference

    config.backbone = backbone
    params = model_of(config).learnt_shapes()["params"]
    for name, module in (("bottleneck", reference.Bottleneck), ("student", reference.Student)):
        with torch.device("meta"):  # shapes without values
            expected = sum(parameter.numel() for parameter in module(backbone).parameters())
        assert num_parameters(params[name]) == expected
