"""What holds for any input, searched for counterexamples; the same search each time."""

import functools
import itertools
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from rd_jax import anomaly_map, aupro, auroc, flattened_cosine_loss, per_position_cosine_loss
from rd_jax.data.order import batch_indices
from rd_jax.data.sources import Source, find_categories
from rd_jax.method.curve import average_precision, image_curve, max_f1
from rd_jax.method.score import blur_matrix, upsampling_matrix
from rd_jax.system.errors import UserError, printable

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=30, database=None)
settings.load_profile("fixed")

# Few shapes, since each one is compiled anew; few values, so that there are many ties.
LEVELS = np.array([-3e38, -2.5, -1e-30, -0.0, 0.0, 1e-30, 0.1, 0.30000001, 7.0, 3e38], np.float32)
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def scores_and_labels(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    size = draw(st.sampled_from([2, 7, 40]))
    scores = LEVELS[draw(arrays(np.int64, size, elements=st.integers(0, len(LEVELS) - 1)))]
    labels = draw(arrays(bool, size))
    assume(0 < labels.sum() < size)
    return scores, labels


FIGURES = (
    auroc,  # on the host
    lambda scores, labels: auroc(jnp.asarray(scores), labels),  # jitted
    lambda scores, labels: average_precision(image_curve(scores, labels)),
    lambda scores, labels: max_f1(image_curve(scores, labels)),
)


@given(scores_and_labels())
def test_metrics_equal_scikit_learn(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = drawn
    wide = scores.astype(np.float64)  # scikit-learn subtracts them
    precision, recall, _ = precision_recall_curve(labels, wide)
    area = roc_auc_score(labels, wide)
    f1 = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))
    expected = (area, area, average_precision_score(labels, wide), f1)
    for figure, value in zip(FIGURES, expected, strict=True):
        assert float(figure(scores, labels)) == pytest.approx(value, abs=1e-6)


@given(scores_and_labels(), SEEDS)
def test_metrics_depend_on_the_order_of_scores_alone(
    drawn: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    scores, labels = drawn
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(scores))
    # Any strictly increasing map of the values: new ones, in the order of the old.
    values, ranks = np.unique(scores, return_inverse=True)
    mapped = np.sort(rng.choice(1000, len(values), replace=False) - 500.0).astype(np.float32)[ranks]
    for figure in FIGURES:
        value = pytest.approx(float(figure(scores, labels)), abs=1e-6)
        assert float(figure(mapped, labels)) == value
        assert float(figure(scores[shuffled], labels[shuffled])) == value


@given(scores_and_labels())
def test_exchanged_classes_and_reversed_scores_have_complementary_auroc(
    drawn: tuple[np.ndarray, np.ndarray],
) -> None:
    scores, labels = drawn
    value = float(auroc(scores, labels))
    assert float(auroc(scores, ~labels)) == pytest.approx(1 - value, abs=1e-6)
    assert float(auroc(-scores, labels)) == pytest.approx(1 - value, abs=1e-6)
    assert float(auroc(-scores, ~labels)) == pytest.approx(value, abs=1e-6)


MASKS = arrays(bool, (2, 8, 8)).filter(lambda masks: 0 < masks.sum() < masks.size)


@given(MASKS, SEEDS, st.sampled_from([0.05, 0.3, 1.0]))
def test_aupro_of_a_perfect_map_is_one_of_a_reversed_one_zero_and_else_between(
    masks: np.ndarray, seed: int, max_fpr: float
) -> None:
    maps = np.random.default_rng(seed).random(masks.shape, np.float32)
    assert float(aupro(maps + 2 * masks, masks, max_fpr)) == pytest.approx(1, abs=1e-6)
    assert float(aupro(maps - 2 * masks, masks, max_fpr)) == pytest.approx(0, abs=1e-6)
    value = float(aupro(maps, masks, max_fpr))
    assert 0 <= value <= 1 + 1e-6
    assert float(aupro(maps[::-1], masks[::-1], max_fpr)) == pytest.approx(value, abs=1e-6)


@given(st.integers(1, 40), st.integers(1, 40))
def test_upsampling_averages_neighbours(size: int, length: int) -> None:
    matrix = upsampling_matrix(size, length)
    assert matrix.shape == (size, length)
    assert (matrix >= 0).all()
    assert (np.count_nonzero(matrix, axis=1) <= 2).all()
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    values = np.random.default_rng(size).normal(size=length)
    positions = np.linspace(0, length - 1, size)
    expected = ndimage.map_coordinates(values, [positions], order=1, mode="nearest")
    np.testing.assert_allclose(matrix @ values, expected, atol=1e-12)


@given(st.integers(1, 60), st.floats(0.05, 20))
@example(3, 20.0)  # the kernel is many times as long as the image
def test_blur_equals_scipy_and_keeps_the_sum(size: int, sigma: float) -> None:
    matrix = blur_matrix(size, sigma)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix.sum(0), 1, atol=1e-12)
    values = np.random.default_rng(size).normal(size=size)
    expected = ndimage.gaussian_filter1d(values, sigma)
    np.testing.assert_allclose(matrix @ values, expected, atol=1e-12)


SHAPES = [((1, 4, 4, 3),), ((2, 4, 4, 2), (2, 2, 2, 5))]


@st.composite
def features_of_both(draw: st.DrawFn) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Of teacher and student, with zero vectors, of very different length."""
    rng = np.random.default_rng(draw(SEEDS))
    scale = draw(st.sampled_from([1e-20, 1e-6, 1.0, 1e3]))
    sparsity = draw(st.sampled_from([0.0, 0.5, 1.0]))

    def drawn(shape: tuple[int, ...]) -> jax.Array:
        kept = rng.random((*shape[:-1], 1)) >= sparsity
        return jnp.asarray(scale * kept * rng.normal(size=shape), jnp.float32)

    shapes = draw(st.sampled_from(SHAPES))
    return tuple(map(drawn, shapes)), tuple(map(drawn, shapes))


@given(features_of_both(), st.sampled_from([0.0, 1.5]))
def test_maps_are_finite_and_at_most_two_per_scale(features: tuple, sigma: float) -> None:
    maps = np.asarray(anomaly_map(*features, 16, sigma))
    assert maps.shape == (len(features[0][0]), 16, 16)
    assert (maps > -1e-5).all()
    assert (maps < 2 * len(features[0]) + 1e-5).all()


@given(SEEDS)
def test_the_map_of_several_scales_is_the_sum_of_their_maps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    teacher, student = (
        tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in SHAPES[1])
        for _ in range(2)
    )
    alone = [anomaly_map((t,), (s,), 16) for t, s in zip(teacher, student, strict=True)]
    np.testing.assert_allclose(anomaly_map(teacher, student, 16), sum(alone), atol=1e-5)


LOSSES = st.sampled_from([per_position_cosine_loss, flattened_cosine_loss])


@functools.cache
def compiled(loss):
    return jax.jit(jax.value_and_grad(loss, argnums=1))


@given(features_of_both(), LOSSES)
def test_losses_are_bounded_and_their_gradients_finite(features: tuple, loss) -> None:
    value, gradients = compiled(loss)(*features)
    assert -1e-5 < float(value) < 2 * len(features[0]) + 1e-5
    assert all(bool(jnp.isfinite(gradient).all()) for gradient in gradients)


@given(SEEDS, st.sampled_from(SHAPES), LOSSES, st.floats(0.1, 10), st.floats(0.1, 10))
def test_losses_are_zero_for_equal_directions_and_blind_to_length(
    seed: int, shapes: tuple, loss, of_teacher: float, of_student: float
) -> None:
    rng = np.random.default_rng(seed)
    teacher, student = (
        tuple(jnp.asarray(rng.normal(size=shape) + 0.1, jnp.float32) for shape in shapes)
        for _ in range(2)
    )

    def scaled(features: tuple[jax.Array, ...], factor: float) -> tuple[jax.Array, ...]:
        return tuple(jnp.float32(factor) * feature for feature in features)

    value, _ = compiled(loss)(teacher, student)
    again, _ = compiled(loss)(scaled(teacher, of_teacher), scaled(student, of_student))
    assert float(again) == pytest.approx(float(value), abs=1e-5)
    same, _ = compiled(loss)(teacher, scaled(teacher, of_student))
    assert float(same) == pytest.approx(0, abs=1e-5)


IMAGE_SUFFIXES = {".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".webp"}
SUFFIXES = st.sampled_from([*sorted(IMAGE_SUFFIXES), ".PNG", ".Jpg", ".txt", ".json", ".db", ""])
STEMS = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), max_size=6)
NAMES = st.builds("{}{}".format, STEMS, SUFFIXES).filter(
    lambda name: name not in ("", ".", "..") and not name.startswith(".") and len(name) < 60
)
FILES = st.lists(NAMES, max_size=5, unique=True)
FOLDERS = st.dictionaries(
    st.sampled_from(["good", "stain", "hole", "été 2", ".hidden", "a b"]), FILES, max_size=4
)


def is_image(path: Path) -> bool:
    return path.name[0] != "." and os.path.splitext(path.name)[1].lower() in IMAGE_SUFFIXES


@given(FILES, FOLDERS)
def test_a_category_is_what_an_independent_walk_finds(train: list[str], test: dict) -> None:
    with tempfile.TemporaryDirectory() as name:
        data_dir = Path(name)
        root = data_dir / "cable"
        written = {"train/good": [*train, "0.png"]}
        written |= {f"test/{folder}": names for folder, names in test.items()}
        for folder, names in written.items():
            (root / folder).mkdir(parents=True)
            for file in [*names, ".hidden.png"]:
                (root / folder / file).write_text("")
        (category,) = find_categories(Source(str(data_dir), "", (1, 1), "stretch"))
        found = [
            Path(folder) / file
            for folder, _, files in os.walk(root)
            for file in files
            if is_image(Path(file)) and not os.path.basename(folder).startswith(".")
        ]
        in_train = sorted(path for path in found if path.parts[-3] == "train")
        in_test = sorted(path for path in found if path.parts[-3] == "test")
        assert [row.image for row in category.rows if row.split == "train"] == in_train
        of_test = [row for row in category.rows if row.split == "test"]
        assert [row.image for row in of_test] == in_test
        assert [row.label for row in of_test] == [path.parts[-2] for path in in_test]
        assert not any(row.masks for row in of_test)


@given(st.text() | st.binary().map(os.fsdecode))
def test_errors_are_one_line_that_can_be_written(text: str) -> None:
    message = str(UserError(text))
    message.encode()
    assert len(message.splitlines()) <= 1
    assert printable(message) == message
    if text.isascii() and text.isprintable():
        assert message == text


@given(SEEDS, st.integers(1, 12), st.integers(1, 15))
def test_at_any_time_all_images_have_been_used_equally_often(
    seed: int, num_images: int, batch_size: int
) -> None:
    batches = [batch_indices(seed, step, num_images, batch_size) for step in range(6)]
    order = list(itertools.chain.from_iterable(batches))
    for end in range(1, len(order) + 1):
        used = np.bincount(order[:end], minlength=num_images)
        assert used.max() - used.min() <= 1
