import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rd_jax import flattened_cosine_loss, per_position_cosine_loss
from rd_jax.method.loss import LOSSES, cosine_distance

SHAPES = [(2, 8, 8, 4), (2, 4, 4, 8), (2, 2, 2, 16)]


def draw(seed: int) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in SHAPES)


def literal_loss(teacher: tuple, student: tuple, flatten: bool) -> float:
    total = 0.0
    for t, s in zip(teacher, student, strict=True):
        channels = -1 if flatten else t.shape[-1]
        rows = t.shape[0] if flatten else t.size // t.shape[-1]
        a, b = np.reshape(t, (rows, channels)), np.reshape(s, (rows, channels))
        cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
        total += 1 - np.mean(cosines)
    return total


@pytest.mark.parametrize("scales", [(0,), (2,), (0, 1), (0, 1, 2)])
@pytest.mark.parametrize(
    ("loss", "flatten"), [(per_position_cosine_loss, False), (flattened_cosine_loss, True)]
)
def test_losses_equal_their_definition_on_any_scales(loss, flatten, scales) -> None:
    teacher, student = (tuple(draw(seed)[i] for i in scales) for seed in (0, 1))
    expected = literal_loss(teacher, student, flatten)
    np.testing.assert_allclose(loss(teacher, student), expected, atol=1e-6)


def test_mixed_is_the_mean_of_the_two_definitions() -> None:
    teacher, student = draw(0), draw(1)
    expected = sum(literal_loss(teacher, student, flatten) for flatten in (True, False)) / 2
    np.testing.assert_allclose(LOSSES["mixed"](teacher, student), expected, atol=1e-6)


@pytest.mark.parametrize("loss", [per_position_cosine_loss, flattened_cosine_loss])
def test_loss_of_equal_features_is_zero(loss) -> None:
    np.testing.assert_allclose(loss(draw(0), draw(0)), 0, atol=1e-6)


@pytest.mark.parametrize("loss", [per_position_cosine_loss, flattened_cosine_loss])
@pytest.mark.parametrize("zero_teacher", [True, False])
def test_zero_vectors_have_finite_value_and_gradient(loss, zero_teacher) -> None:
    teacher = tuple(f * (not zero_teacher) for f in draw(0))
    student = tuple(jnp.zeros_like(f) for f in teacher)
    value, gradients = jax.value_and_grad(loss, argnums=1)(teacher, student)
    assert float(value) == 3.0
    assert all(bool(jnp.isfinite(g).all()) for g in gradients)


def test_gradient_equals_pytorch_even_for_tiny_vectors() -> None:
    torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
    a = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    b = a[::-1] * np.array([[1], [1e-3], [1e3], [1e-2], [10], [1]], np.float32)
    gradient = jax.grad(lambda x: cosine_distance(a, x).sum())(jnp.asarray(b))
    tensor = torch.from_numpy(b.copy()).requires_grad_()
    (1 - torch.cosine_similarity(torch.from_numpy(a), tensor)).sum().backward()
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_low_precision_features_are_compared_in_float32() -> None:
    features = tuple(f.astype(jnp.bfloat16) for f in draw(0))
    assert per_position_cosine_loss(features, features).dtype == jnp.float32


@pytest.mark.parametrize("length", [1e-6, 1e-8, 3e-9, 1e-12, 0.0])
def test_short_vectors_are_clamped_each_as_in_pytorch(length: float) -> None:
    torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
    a, b = np.random.default_rng(0).normal(size=(2, 6, 5)).astype(np.float32)
    a = a / np.linalg.norm(a, axis=-1, keepdims=True) * np.float32(length)
    for first, second in ((a, 1e4 * b), (b, a), (a, a)):
        expected = 1 - torch.cosine_similarity(torch.from_numpy(first), torch.from_numpy(second))
        np.testing.assert_allclose(cosine_distance(first, second), expected.numpy(), atol=1e-6)
