"""The script that makes the teacher that comes along, on tiny networks and images."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import save_file
from sklearn.datasets import load_sample_images

from benchmarks.teacher import embedded_teacher, procedural
from rd_jax import load_teacher
from rd_jax.method.loss import per_position_cosine_loss


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in dict(BACKBONE="tiny", CANVAS=40, CROP=32, BATCH=8, SAVE_EVERY=2).items():
        monkeypatch.setattr(embedded_teacher, name, value)
    monkeypatch.setattr(embedded_teacher, "cpu_count", lambda: 1)


def test_an_image_is_a_pure_function_of_its_seed_and_images_differ() -> None:
    photographs = load_sample_images().images
    first, again = ([procedural.canvas(photographs, 48, 3, i) for i in range(40)] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert {(image.shape, image.dtype) for image in first} == {((48, 48, 3), np.dtype(np.uint8))}
    assert len({image.tobytes() for image in first}) == 40
    grey = [bool((image == image[..., :1]).all()) for image in first]
    assert 0 < sum(grey) < 20
    assert np.mean([image.std() for image in first]) > 20


def test_batches_go_on_where_they_were_left() -> None:
    whole = list(islice(embedded_teacher.batches(5, 0), 7))
    assert len({image.tobytes() for batch in whole for image in batch}) > 50
    rest = list(islice(embedded_teacher.batches(5, 5), 2))
    np.testing.assert_array_equal(whole[5:], rest)


def test_a_distillation_that_was_killed_ends_with_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    embedded_teacher.make("tiny50", "random", whole, steps=6, seed=1)
    assert load_teacher("tiny", str(whole)).keys() == load_teacher("tiny", "random").keys()
    made = embedded_teacher.batches

    def killed_at_the_third(seed: int, first: int) -> Iterator[np.ndarray]:
        yield from islice(made(seed, first), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded_teacher, "batches", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        embedded_teacher.make("tiny50", "random", killed, steps=6, seed=1)
    assert killed.with_suffix(".state").exists()
    monkeypatch.setattr(embedded_teacher, "batches", made)
    embedded_teacher.make("tiny50", "random", killed, steps=6, seed=1)
    assert killed.read_bytes() == whole.read_bytes()
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}


def test_an_imitator_starts_from_the_layers_that_it_shares_with_its_source() -> None:
    source, own = load_teacher("resnet18", "random"), load_teacher("resnet10", "random")
    started = flatten_dict(embedded_teacher.start(own, source))
    assert started.keys() == flatten_dict(own).keys()
    for path, value in started.items():
        np.testing.assert_array_equal(value, flatten_dict(source)[path])
    own = load_teacher("tiny", "random")
    other = embedded_teacher.start(own, load_teacher("tiny50", "random"))
    np.testing.assert_array_equal(
        other["params"]["layer1_0"]["conv1"]["kernel"],
        own["params"]["layer1_0"]["conv1"]["kernel"],
    )


def test_the_loss_is_nothing_for_equal_features_and_counts_variances() -> None:
    rng = np.random.default_rng(0)
    wanted = tuple(rng.normal(2, 3, (2, size, size, 8)).astype(np.float32) for size in (8, 4, 2))
    assert embedded_teacher.imitation_loss(wanted, wanted) == pytest.approx(0, abs=1e-5)
    got = tuple(f + 3 * rng.standard_normal(f.shape, np.float32) for f in wanted)
    cosine = per_position_cosine_loss(wanted, got)
    squared = sum(np.mean((w - g) ** 2) / np.var(w) for w, g in zip(wanted, got, strict=True))
    np.testing.assert_allclose(embedded_teacher.imitation_loss(wanted, got), cosine + squared, 1e-5)


def test_likeness_is_measured_on_images_of_a_folder(tmp_path: Path) -> None:
    for i in range(3):
        pixels = procedural.draw(np.random.default_rng(i), 48)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    file = tmp_path / "same.safetensors"
    save_file(embedded_teacher.to_state_dict(load_teacher("tiny", "random")), file)
    same = embedded_teacher.compare(file, "tiny", "random", tmp_path, 32)
    np.testing.assert_allclose(same, 1, atol=1e-4)
