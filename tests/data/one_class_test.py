"""Classification data sets as one-class novelty detection."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from rd_jax.data import Split
from rd_jax.data.sources import Source, find_categories
from rd_jax.system.errors import UserError
from tests.conftest import shared


def splits(chosen: str = "", size: int = 32) -> list[Split]:
    source = Source("", "digits", (size, size), "stretch")
    return [category.load() for category in find_categories(source, chosen)]


def test_digits_are_split_within_each_class_and_lose_no_image() -> None:
    grey, labels = load_digits(return_X_y=True)
    found = splits(size=8)
    counts = np.round(0.7 * np.bincount(labels))
    np.testing.assert_array_equal([len(split.train) for split in found], counts)
    images = np.concatenate([found[0].test, *(split.train for split in found)])
    np.testing.assert_array_equal(images[..., 0], images[..., 2])
    seen = sorted(map(bytes, images[..., 0].reshape(-1, 64)))
    assert seen == sorted(map(bytes, np.round(grey * 255 / 16).astype(np.uint8)))


def test_one_class_is_trained_on_and_all_are_tested() -> None:
    [three] = find_categories(Source("", "digits", (32, 32), "stretch"), "3")
    split, [other] = three.load(), splits("4")
    assert (three.name, three.num_train, three.folders) == ("3", len(split.train), ())
    assert {name.split("/")[0] for name in split.train_names} == {"3"}
    is_three = [name.split("/")[0] == "3" for name in split.test_names]
    np.testing.assert_array_equal(split.labels, np.logical_not(is_three))
    assert split.test.shape[1:] == (32, 32, 3)
    assert split.masks is None
    assert split.train_sha256 != other.train_sha256
    assert split.test_sha256 == other.test_sha256


def test_images_are_known_by_their_pixels_whatever_size_they_get() -> None:
    [small], [large] = splits("3", 16), splits("3", 32)
    assert small.train_hashes == large.train_hashes
    assert small.test_sha256 == large.test_sha256
    assert len(set(small.train_hashes)) == len(small.train)


@pytest.mark.parametrize("absent", ["10", "-2", "three", "1,x"])
def test_a_class_that_is_not_there_is_refused(absent: str) -> None:
    with pytest.raises(UserError, match="has the classes 0 to 9"):
        splits(absent, 8)


@pytest.fixture(scope="session")
def tfds_dir() -> Path:
    return shared("data/tfds", "Fashion-MNIST is")


def test_a_tfds_set_is_read_whole_and_without_tensorflow(tfds_dir: Path, tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    # The first images of its test split stand for both, which take half a minute to decode.
    folder = shutil.copytree(tfds_dir, tmp_path / "tfds", copy_function=os.symlink)
    (info,) = folder.rglob("dataset_info.json")
    text = info.read_text().replace('"60000"', '"1200"').replace('"10000"', '"1200"')
    info.unlink()
    info.write_text(text)
    (train,) = folder.rglob("*-train.array_record-*")
    train.unlink()
    train.symlink_to(next(tfds_dir.rglob("*-test.array_record-*")))

    categories = find_categories(Source(str(folder), "fashion_mnist", (28, 28), "stretch"))
    assert "tensorflow" not in sys.modules
    assert sum(category.num_train for category in categories) == 1200
    assert categories[0].folders == (folder.resolve(),)
    split = categories[3].load()
    assert split.train.shape == (categories[3].num_train, 28, 28, 3)
    assert split.test.shape == (1200, 28, 28, 3)
    source = tfds.data_source("fashion_mnist", data_dir=tfds_dir, split="test")
    for i in (0, 1023, 1024, 1199):
        np.testing.assert_array_equal(split.test[i], np.repeat(source[i]["image"], 3, axis=-1))
        assert split.test_names[i] == f"{source[i]['label']}/{i}"


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("mnist", r"dataset 'mnist' is not prepared in .*: pip install tensorflow && python -c"),
        ("fashion", "neither 'digits' nor a set of classified images in TFDS"),
        ("cifar-10", "neither 'digits' nor a set of classified images in TFDS"),
        ("mnist:9.9.9", "neither 'digits' nor a set of classified images in TFDS"),
        ("imdb_reviews", "neither 'digits' nor a set of classified images in TFDS"),
    ],
)
def test_a_set_that_is_not_there_says_what_to_do(
    tmp_path: Path, dataset: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        find_categories(Source(str(tmp_path), dataset, (32, 32), "stretch"))


def test_a_set_in_a_format_of_tensorflow_alone_is_refused(tmp_path: Path, tfds_dir: Path) -> None:
    copy = shutil.copytree(tfds_dir, tmp_path / "tfds", copy_function=os.symlink)
    (path,) = copy.glob("fashion_mnist/*/dataset_info.json")
    text = path.read_text().replace("array_record", "tfrecord")
    path.unlink()
    path.write_text(text)
    with pytest.raises(
        UserError, match=r"not prepared in .* as array_record, which is read without"
    ):
        find_categories(Source(str(copy), "fashion_mnist", (32, 32), "stretch"))
