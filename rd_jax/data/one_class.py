"""A classification data set as one-class novelty detection, as in the paper's experiments.

One class is normal: its training images are trained on, and the test images of all other classes
are anomalous. Data sets are "digits", which scikit-learn brings along, and those of TFDS.
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rd_jax.data import Split
from rd_jax.data.cache import cached_array
from rd_jax.data.decode import DECODER_VERSION, resized
from rd_jax.data.hashes import content_sha256
from rd_jax.method.size import Size, height_and_width
from rd_jax.system.errors import UserError
from rd_jax.system.files import user_path


class Classes(NamedTuple):
    """A classification data set; uint8 images [., H, W, 3], labels int [.]."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    test_sha256: str
    num_classes: int


@lru_cache(maxsize=1)  # of which each class in turn is made a split
def load_classes(dataset: str, data_dir: str | Path, size: Size) -> Classes:
    """Decodes a data set: "digits", or the splits train and test of one of TFDS in `data_dir`.

    Raises UserError if it is not prepared there, saying how, or if it does not classify images.
    """
    return _digits(size) if dataset == "digits" else _tfds(dataset, user_path(data_dir), size)


def one_class(classes: Classes, normal_class: int) -> Split:
    """Training images of one class, and all test images. Raises UserError for no such class."""
    if not 0 <= normal_class < classes.num_classes:
        raise UserError(
            f"config.normal_class={normal_class}: the data set has the classes 0 to "
            f"{classes.num_classes - 1} (-1: each in turn)"
        )
    members = np.flatnonzero(classes.train_labels == normal_class)
    if not len(members):
        raise UserError(f"the data set has no training images of class {normal_class}")
    train = classes.train[members]
    return Split(
        name=str(normal_class),
        train=train,
        train_names=[f"{normal_class}/{i}" for i in members],
        train_sha256=hashlib.sha256(train.data).hexdigest(),
        test=classes.test,
        test_names=[f"{label}/{i}" for i, label in enumerate(classes.test_labels)],
        test_sha256=classes.test_sha256,
        labels=classes.test_labels != normal_class,
        masks=None,
    )


def _stacked(images: Iterable[np.ndarray], size: Size) -> np.ndarray:
    """uint8 images [h, w, 1 or 3], resized, as one array [., H, W, 3]."""
    return np.stack([resized(Image.fromarray(image.squeeze()), size) for image in images])


def _digits(size: Size) -> Classes:
    """1797 digits of 8x8 pixels; of each class, 70 % are for training, always the same."""
    from sklearn.datasets import load_digits

    grey, labels = load_digits(return_X_y=True)
    images = np.round(grey.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    shuffled = np.random.default_rng(0).permutation(len(labels))
    images, labels = _stacked(images[shuffled], size), labels[shuffled]
    is_train = np.zeros(len(labels), bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        is_train[members[: round(0.7 * len(members))]] = True
    test, test_labels = images[~is_train], labels[~is_train]
    sha256 = hashlib.sha256(test.data).hexdigest()
    return Classes(images[is_train], labels[is_train], test, test_labels, sha256, 10)


def _tfds(dataset: str, data_dir: Path, size: Size) -> Classes:
    import tensorflow_datasets as tfds

    builder, (height, width) = _prepared_builder(dataset, data_dir), height_and_width(size)
    image_key, label_key = builder.info.supervised_keys
    missing = {"train", "test"} - set(builder.info.splits)
    if missing:
        raise UserError(f"dataset {dataset!r} has no split {' and no '.join(sorted(missing))}")

    def load(split: str) -> tuple[np.ndarray, np.ndarray, str]:
        info = builder.info.splits[split]
        sha256 = content_sha256([Path(path) for path in info.filepaths])
        key = f"{sha256}-tfds-{height}x{width}-v{DECODER_VERSION}"
        decoded = builder.as_data_source(split=split)
        undecoded = {image_key: tfds.decode.SkipDecoding()}
        encoded = builder.as_data_source(split=split, decoders=undecoded)

        def images(part: range) -> np.ndarray:
            return _stacked((decoded[i][image_key] for i in part), size)

        def labels(part: range) -> np.ndarray:
            return np.array([encoded[i][label_key] for i in part], np.int64)

        shape = (info.num_examples, height, width, 3)
        return (
            cached_array(f"{key}-images", shape, np.uint8, images),
            cached_array(f"{key}-labels", shape[:1], np.int64, labels),
            sha256,
        )

    num_classes = builder.info.features[label_key].num_classes
    train, train_labels, _ = load("train")
    return Classes(train, train_labels, *load("test"), num_classes)


def _prepared_builder(dataset: str, data_dir: Path) -> Any:
    """The data set's builder.

    Raises UserError if it does not classify images or is not prepared in a readable format.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(dataset, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise UserError(
            f"dataset {dataset!r} is neither 'digits' nor known to TFDS: see "
            "https://www.tensorflow.org/datasets/catalog/overview#image_classification"
        ) from error
    info = builder.info
    parts = [info.features[key] for key in info.supervised_keys or ()]
    kinds = [tfds.features.Image, tfds.features.ClassLabel]
    if len(parts) != 2 or not all(map(isinstance, parts, kinds)):
        raise UserError(f"dataset {dataset!r} does not classify images: it has {info.features}")

    def prepare(folder: Path | str) -> str:
        return (
            'pip install tensorflow && python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder('{dataset}', data_dir='{folder}', file_format='array_record')"
            '.download_and_prepare()" (TensorFlow and the network are needed for this alone)'
        )

    if not builder.is_prepared():
        raise UserError(f"dataset {dataset!r} is not prepared in {data_dir}: {prepare(data_dir)}")
    if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"dataset {dataset!r} is prepared in {data_dir} as {info.file_format.value}, which "
            "cannot be read without TensorFlow: set --config.data_dir=FOLDER after "
            f"{prepare('FOLDER')}"
        )
    return builder
