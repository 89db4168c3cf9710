"""Images that are equal, nearly equal or of one group are held out together and count once."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from rd_jax.config import get_config
from rd_jax.data import Category, Split
from rd_jax.data.copies import groups_of, near_copies
from rd_jax.data.order import holdout_indices
from rd_jax.data.sources import Source, find_categories
from rd_jax.predict.predictor import load_predictor, score_arrays
from rd_jax.run.plan import Given, held_out_of
from rd_jax.run.training import train
from rd_jax.store.rows import read_json


@cache
def drawn(num_images: int, size: int = 32) -> np.ndarray:
    """Images of one object, no two of which are nearly equal."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(num_images + 1, size, size, 3))
    smooth = gaussian_filter(noise, (0, 2, 2, 0))
    smooth /= smooth.std()
    return np.clip(128 + 40 * smooth[:1] + 12 * smooth[1:], 0, 255).astype(np.uint8)


def split_of(contents: Sequence[int], groups: Sequence[str] = ()) -> Split:
    """Training images whose contents have these numbers."""
    images = drawn(max(contents) + 1)[list(contents)]
    names = tuple(f"{i:03}" for i in range(len(contents)))
    hashes = tuple(f"hash {content}" for content in contents)
    none = np.zeros((0, *images.shape[1:]), np.uint8), (), "", np.zeros(0, bool), None
    return Split("drawn", images, names, hashes, *none, groups=tuple(groups))


def connected(hashes: Sequence[str], groups: Sequence[str]) -> list[int]:
    """The first image of each one's group, by joining until nothing changes."""
    first = list(range(len(hashes)))
    while True:
        before = list(first)
        for i in range(len(hashes)):
            for j in range(len(hashes)):
                if hashes[i] == hashes[j] or (groups[i] and groups[i] == groups[j]):
                    first[i] = first[j] = min(first[i], first[j])
        if before == first:
            return first


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_what_contents_and_names_connect(seed: int) -> None:
    rng = np.random.default_rng(seed)
    contents = rng.integers(0, 25, 30).tolist()
    names = np.where(rng.random(30) < 0.4, rng.integers(0, 6, 30).astype(str), "").tolist()
    split = split_of(contents, names)
    assert groups_of(split, "content").tolist() == connected(split.train_hashes, names)


@pytest.mark.parametrize("seed", range(5))
def test_copies_change_neither_which_contents_are_held_out_nor_their_number(seed: int) -> None:
    config = get_config(holdout=0.3, holdout_at_least=7, seed=seed)
    trained_on, held_out = held_out_of(config, split_of(range(20)))
    expected = holdout_indices(seed, 0.3, 20, 7)
    np.testing.assert_array_equal(trained_on, expected[0])
    np.testing.assert_array_equal(held_out, expected[1])

    contents = np.append(np.arange(20), np.random.default_rng(seed).integers(0, 20, 30))
    of_trained, of_held_out = (contents[x] for x in held_out_of(config, split_of(contents)))
    assert set(of_trained) == set(trained_on)
    assert len(of_trained) == np.isin(contents, trained_on).sum()  # with all copies
    np.testing.assert_array_equal(of_held_out, held_out)  # without


def test_a_training_counts_a_group_once_by_its_highest_image(tmp_path: Path) -> None:
    contents = [*range(12), 0, 0, 5, 11]
    groups = ["a" if i in (1, 2, 3) else "b" if i in (6, 7) else "" for i in range(len(contents))]
    split = split_of(contents, groups)
    small = {"image_size": 32, "batch_size": 4, "num_epochs": 1, "dtype": "float32"}
    teacher = {"backbone": "tiny", "teacher_weights": "random"}
    config = get_config(**small, **teacher, holdout=0.7, seed=0)
    loaded = Category("drawn", len(split.train), (), lambda: split)
    train(config, tmp_path, given=Given([loaded]))

    members = sorted(set(connected(split.train_hashes, groups)))
    chosen = [members[i] for i in holdout_indices(0, 0.7, 9)[1]]
    assert {1, 6} <= set(chosen)  # both groups of several images
    _, scores, _ = score_arrays(load_predictor(tmp_path), split.train)
    first = np.array(connected(split.train_hashes, groups))
    expected = [scores[first == member].max() for member in chosen]
    stored = read_json(tmp_path / "drawn" / "thresholds.json")
    assert stored["normal"]["scores"] == pytest.approx(expected, rel=1e-5)
    assert stored["thresholds"]["num_images"] == len(chosen) == 6
    assert stored["thresholds"]["kept_rate"] == 1 / 7


def altered(image: np.ndarray, path: Path) -> list[np.ndarray]:
    """Saved again, with noise, and brighter by 2 %."""
    Image.fromarray(image).save(path, quality=90, subsampling=0)
    noise = np.random.default_rng(0).normal(0, 2, image.shape)
    changed = (np.clip(x, 0, 255).astype(np.uint8) for x in (image + noise, 1.02 * image))
    return [np.asarray(Image.open(path)), *changed]


def test_near_copies_are_found_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = drawn(40, 64)
    assert len(near_copies(images)) == 0
    assert len(near_copies(images[:1])) == 0
    more = np.concatenate([images, altered(images[7], tmp_path / "a.jpg")])
    found = sorted(map(tuple, near_copies(more).tolist()))
    assert found == [(7, 40), (7, 41), (7, 42), (40, 41), (40, 42), (41, 42)]

    names = tuple(map(str, range(43)))
    split = replace(split_of(range(43)), train=more, train_names=names)
    assert groups_of(split, "content").tolist() == [*range(43)]
    assert "6 pairs of training images are nearly equal, such as 7 and 40; 7 and 41" in caplog.text
    caplog.clear()
    assert groups_of(split, "near").tolist() == [*range(40), 7, 7, 7]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    one_part = tuple("part" if i in (7, 40, 41, 42) else "" for i in range(43))
    groups_of(replace(split, groups=one_part), "content")
    assert "nearly equal" not in caplog.text


def test_training_images_in_the_test_set_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = drawn(4)
    for place, content in (("train/good/a", 0), ("train/good/b", 1), ("test/good/c", 1)):
        path = tmp_path / "nut" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[content]).save(path)
    (tmp_path / "nut" / "test" / "bent").mkdir()
    Image.fromarray(images[0]).save(tmp_path / "nut" / "test" / "bent" / "d.bmp")
    Image.fromarray(images[2]).save(tmp_path / "nut" / "test" / "bent" / "e.bmp")
    (found,) = find_categories(Source(str(tmp_path), "", (32, 32), "stretch"))
    found.load()
    assert "nut: 2 of 3 test images are training images, too" in caplog.text
    assert "bent/d.bmp, good/c.png" in caplog.text
