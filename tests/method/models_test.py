import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rd_jax import anomaly_map, convert_rd4ad, convert_teacher, normalize
from rd_jax.config import Config
from rd_jax.method.loss import flattened_cosine_loss, per_position_cosine_loss
from rd_jax.method.models import BACKBONES, Bottleneck, Reconstruction, Student, Teacher
from rd_jax.method.models.batch_norm import BatchNorm, _batch_normalized
from rd_jax.method.models.init import example_shapes, init_variables, variable_shapes
from rd_jax.method.train import TrainState
from rd_jax.run.build import optimizer_of
from rd_jax.weights.teacher import load_teacher
from tests.reference_weights import draw_images, draw_state_dict, sample
from tests.trained import train_step_of

REAL_BACKBONES = [name for name in BACKBONES if "resnet" in name]
GOLDEN = Path(__file__).parents[1] / "golden"


def relative_error(actual: jax.Array, expected: np.ndarray) -> float:
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def only(variables: dict, name: str) -> dict:
    return {collection: tree[name] for collection, tree in variables.items()}


@pytest.mark.parametrize("backbone", REAL_BACKBONES)
def test_networks_losses_and_map_equal_pytorch_golden_files(backbone: str) -> None:
    golden = np.load(GOLDEN / f"{backbone}.npz")
    shapes = json.loads(str(golden["shapes"]))
    drawn = {name: draw_state_dict(shapes[name]) for name in shapes}
    teacher = convert_teacher(drawn["teacher"], backbone)
    variables = convert_rd4ad(drawn["bottleneck"], drawn["student"], backbone)

    @jax.jit
    def forward(teacher, variables, images):
        features = Teacher(backbone).apply(teacher, normalize(images))
        embedding = Bottleneck(backbone).apply(only(variables, "bottleneck"), features)
        return features, embedding, Student(backbone).apply(only(variables, "student"), embedding)

    features, embedding, student_features = forward(teacher, variables, draw_images(2, 64))
    for i in range(3):
        assert relative_error(sample(features[i]), golden[f"teacher{i}"]) < 1e-4
        assert relative_error(sample(student_features[i]), golden[f"student{i}"]) < 1e-4
    assert relative_error(sample(embedding), golden["embedding"]) < 1e-4
    maps = anomaly_map(features, student_features, 64)
    np.testing.assert_allclose(sample(maps), golden["maps"], atol=1e-4)
    for loss, name in (
        (per_position_cosine_loss, "per_position"),
        (flattened_cosine_loss, "flattened"),
    ):
        np.testing.assert_allclose(loss(features, student_features), golden[name], atol=1e-4)


@pytest.mark.parametrize("loss", ["per_position", "flattened"])
def test_three_steps_of_adam_equal_pytorch(config: Config, loss: str) -> None:
    golden = np.load(GOLDEN / f"adam_{loss}.npz")
    shapes = json.loads(str(np.load(GOLDEN / "resnet10.npz")["shapes"]))
    drawn = {name: draw_state_dict(shapes[name]) for name in shapes}
    teacher = convert_teacher(drawn["teacher"], "resnet10")
    variables = convert_rd4ad(drawn["bottleneck"], drawn["student"], "resnet10")
    config.backbone, config.loss = "resnet10", loss
    params = variables["params"]
    opt_state = optimizer_of(config).init(params)
    state = TrainState(params, variables["batch_stats"], opt_state, np.int32(0))
    step, losses = train_step_of(config), []
    for i in range(3):
        state, metrics = step(state, teacher, draw_images(4, 64, seed=i))
        losses.append(float(metrics["loss"]))
        if i == 0:
            variance = state.batch_stats["bottleneck"]["bn_layer_0"]["bn1"]["var"]
            np.testing.assert_allclose(variance, golden["running_var"], rtol=1e-4)
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-3)


@pytest.mark.parametrize("backbone", ["resnet10", "wide_resnet50_2"])  # one of each kind of block
def test_every_value_equals_pytorch(backbone: str) -> None:
    torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
    from benchmarks import torch_reference as reference
    from tests.make_golden import channels_last, networks

    modules, _ = networks(backbone)
    images = draw_images(2, 64, seed=7)
    with torch.no_grad():
        expected = modules["teacher"](reference.normalize(torch.from_numpy(images)))
        expected_student = modules["student"](modules["bottleneck"](expected))
    states = {
        name: {key: value.numpy() for key, value in module.state_dict().items()}
        for name, module in modules.items()
    }
    teacher = convert_teacher(states["teacher"], backbone)
    variables = convert_rd4ad(states["bottleneck"], states["student"], backbone)
    features = jax.jit(Teacher(backbone).apply)(teacher, normalize(images))
    student_features = jax.jit(Reconstruction(backbone).apply)(variables, features)
    for i in range(3):
        assert relative_error(features[i], channels_last(expected[i])) < 1e-4
        assert relative_error(student_features[i], channels_last(expected_student[i])) < 1e-4


def test_real_teacher_equals_pytorch_on_real_images(resnet18_npz: Path, bottle_dir: Path) -> None:
    torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
    from benchmarks import torch_reference as reference
    from rd_jax.data.images import load_images
    from tests.make_golden import channels_last

    images = np.array(load_images(sorted(bottle_dir.glob("bottle/test/*/000.png")), 256)[0])
    module = reference.Teacher("resnet18").eval()
    with np.load(resnet18_npz) as archive:
        state = {name: torch.from_numpy(archive[name]) for name in archive.files}
    missing, _ = module.load_state_dict(state, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in missing)
    with torch.no_grad():
        expected = module(reference.normalize(torch.from_numpy(images)))
    variables = load_teacher("resnet18", str(resnet18_npz))
    features = jax.jit(Teacher("resnet18").apply)(variables, normalize(images))
    for actual, reference_feature in zip(features, expected, strict=True):
        assert relative_error(actual, channels_last(reference_feature)) < 1e-4


@pytest.mark.parametrize(
    ("backbone", "channels"), [(name, 256 if "50" in name else 64) for name in REAL_BACKBONES]
)
def test_student_features_have_the_teachers_shapes(backbone: str, channels: int) -> None:
    image, features = example_shapes(backbone)
    image = jax.ShapeDtypeStruct((2, 64, 96, 3), image.dtype)
    key = jax.random.key(0)
    features, _ = jax.eval_shape(Teacher(backbone).init_with_output, key, image)
    student, _ = jax.eval_shape(Reconstruction(backbone).init_with_output, key, features)
    assert [f.shape for f in features] == [
        (2, 16, 24, channels),
        (2, 8, 12, 2 * channels),
        (2, 4, 6, 4 * channels),
    ]
    assert student == features


def test_an_unknown_kind_of_bottleneck_is_refused() -> None:
    _, features = example_shapes("resnet18")
    with pytest.raises(ValueError, match="kind='mff': must be one of"):
        jax.eval_shape(Bottleneck("resnet18", "mff").init, jax.random.key(0), features)


def test_oce_alone_does_not_see_the_shallow_features() -> None:
    _, features = example_shapes("tiny")
    module = Bottleneck("tiny", "oce")
    rng = np.random.default_rng(0)
    drawn = tuple(rng.normal(size=f.shape).astype(np.float32) for f in features)
    variables = init_variables(variable_shapes(module, features), jax.random.key(0))
    assert set(variables["params"]) == {"bn_layer_0"}
    deepest_alone = (0 * drawn[0], 0 * drawn[1], drawn[2])
    np.testing.assert_array_equal(
        module.apply(variables, drawn), module.apply(variables, deepest_alone)
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parameters_and_statistics_stay_float32(dtype: jnp.dtype) -> None:
    _, features = example_shapes("resnet18")
    module = Reconstruction("resnet18", dtype=dtype)

    def init_and_apply(key, features):
        variables = module.init(key, features)
        return variables, module.apply(variables, features, True, mutable=["batch_stats"])

    variables, (outputs, updated) = jax.eval_shape(init_and_apply, jax.random.key(0), features)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, updated))} == {jnp.dtype("float32")}
    assert {output.dtype for output in outputs} == {jnp.dtype(dtype)}


def test_initialisation_is_kaiming_fan_out_and_a_function_of_the_key() -> None:
    _, features = example_shapes("resnet18")
    module = Reconstruction("resnet18")
    shapes = variable_shapes(module, features)
    variables = init_variables(shapes, jax.random.key(3))
    declared = jax.eval_shape(module.init, jax.random.key(0), features)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), variables) == jax.tree.map(
        lambda x: (x.shape, x.dtype), declared
    )
    student = variables["params"]["student"]
    transposed = student["layer1_0"]["conv1"]["kernel"]  # [in 512, 2, 2, out 256]
    assert transposed.std() == pytest.approx(np.sqrt(2 / (4 * 512)), rel=0.01)
    conv = student["layer1_0"]["conv2"]["kernel"]  # [3, 3, in 256, out 256]
    assert conv.std() == pytest.approx(np.sqrt(2 / (9 * 256)), rel=0.01)
    again = init_variables(shapes, jax.random.key(3))
    other = init_variables(shapes, jax.random.key(4))
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, again))
    assert not np.array_equal(conv, other["params"]["student"]["layer1_0"]["conv2"]["kernel"])


def test_batch_norm_equals_its_definition_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(300, 0.5, (4, 3, 3, 5)).astype(np.float32)
    module = BatchNorm(train=True)
    scale, bias = rng.uniform(1, 2, (2, 5)).astype(np.float32)
    mean, var = np.full(5, 299, np.float32), np.full(5, 2, np.float32)
    y, updated = module.apply(
        {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}},
        x,
        mutable=["batch_stats"],
    )
    exact = x.astype(np.float64)
    m, v = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    np.testing.assert_allclose(y, (exact - m) / np.sqrt(v + 1e-5) * scale + bias, atol=1e-3)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.9 * mean + 0.1 * m, rtol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 * var + 0.1 * v * 36 / 35, rtol=1e-4)


def test_the_derivatives_of_batch_norm_are_those_of_finite_differences() -> None:
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = rng.normal(3, 2, (2, 3, 2, 4))
        scale, bias, shift = rng.uniform(1, 2, (3, 4))
        check_grads(
            lambda x, scale, bias: _batch_normalized(x, scale, bias, shift, 1e-5, None),
            (x, scale, bias),
            order=2,
        )
