"""Classification data sets as one-class novelty detection."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from rd_jax.data.one_class import load_classes, one_class
from rd_jax.system.errors import UserError
from tests.conftest import shared


def test_digits_are_split_within_each_class_and_lose_no_image(tmp_path: Path) -> None:
    classes = load_classes("digits", tmp_path, 32)
    grey, labels = load_digits(return_X_y=True)
    of_class = np.bincount(labels)
    np.testing.assert_array_equal(np.bincount(classes.train_labels), np.round(0.7 * of_class))
    assert len(classes.train) + len(classes.test) == len(grey)
    together = np.concatenate([load_classes("digits", tmp_path, 8)[i] for i in (0, 2)])[..., 0]
    seen = sorted(map(bytes, together.reshape(-1, 64)))
    expected = sorted(map(bytes, np.round(grey * 255 / 16).astype(np.uint8)))
    assert seen == expected
    assert classes.train.dtype == np.uint8
    assert classes.train.shape[1:] == (32, 32, 3)
    np.testing.assert_array_equal(classes.train[..., 0], classes.train[..., 2])


def test_one_class_is_trained_on_and_all_are_tested(tmp_path: Path) -> None:
    classes = load_classes("digits", tmp_path, 32)
    split = one_class(classes, 3)
    np.testing.assert_array_equal(split.train, classes.train[classes.train_labels == 3])
    np.testing.assert_array_equal(split.labels, classes.test_labels != 3)
    assert len(split.test) == len(classes.test)
    assert split.masks is None
    assert split.train_sha256 != one_class(classes, 4).train_sha256
    for absent in (-1, 10):
        with pytest.raises(UserError, match="has the classes 0 to 9"):
            one_class(classes, absent)


@pytest.fixture(scope="session")
def tfds_dir() -> Path:
    return shared("data/tfds", "Fashion-MNIST is")


def test_a_tfds_set_is_read_whole_and_without_tensorflow(tfds_dir: Path, tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    # Its test split stands for its training split, which takes half a minute to decode.
    folder = shutil.copytree(tfds_dir, tmp_path / "tfds", copy_function=os.symlink)
    (info,) = folder.rglob("dataset_info.json")
    text = info.read_text().replace('"60000"', '"10000"')
    info.unlink()
    info.write_text(text)
    (train,) = folder.rglob("*-train.array_record-*")
    train.unlink()
    train.symlink_to(next(tfds_dir.rglob("*-test.array_record-*")))

    classes = load_classes("fashion_mnist", folder, 28)
    assert "tensorflow" not in sys.modules
    assert (classes.train.shape, classes.test.shape) == (2 * ((10000, 28, 28, 3),))
    assert set(np.bincount(classes.train_labels)) == {1000}
    source = tfds.data_source("fashion_mnist", data_dir=tfds_dir, split="test")
    for i in (0, 1023, 1024, 9999):
        np.testing.assert_array_equal(classes.test[i], np.repeat(source[i]["image"], 3, axis=-1))
        assert classes.test_labels[i] == source[i]["label"]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("mnist", r"dataset 'mnist' is not prepared in .*: pip install tensorflow && python -c"),
        ("fashion", "neither 'digits' nor known to TFDS"),
        ("cifar-10", "neither 'digits' nor known to TFDS"),
        ("mnist:9.9.9", "neither 'digits' nor known to TFDS"),
        ("imdb_reviews", "does not classify images"),
    ],
)
def test_a_set_that_is_not_there_says_what_to_do(
    tmp_path: Path, dataset: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_classes(dataset, tmp_path, 32)


def test_a_set_in_a_format_of_tensorflow_alone_is_refused(tmp_path: Path, tfds_dir: Path) -> None:
    copy = shutil.copytree(tfds_dir, tmp_path / "tfds")
    (path,) = copy.glob("fashion_mnist/*/dataset_info.json")
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"as tfrecord, which cannot be read without TensorFlow"):
        load_classes("fashion_mnist", copy, 32)
