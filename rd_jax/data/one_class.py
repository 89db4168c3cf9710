"""A classification data set as one-class novelty detection, as in the paper's experiments.

One class is normal: its training images are trained on, and the test images of all other classes
are anomalous. Data sets are "digits", which scikit-learn brings along, and those of TFDS.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rd_jax.data import Category, Source, Split, sha256_of
from rd_jax.data.cache import cached_rows
from rd_jax.data.decode import DECODER_VERSION, pixel_hash, resized
from rd_jax.system.errors import UserError
from rd_jax.system.files import user_path


def find_categories(source: Source, chosen: str) -> list[Category]:
    """Return the classes that are chosen, by number or all, of a data set, which is decoded.

    That is "digits", or one of TFDS in `data_dir` with splits train and test. Raises UserError if
    it is not prepared there, saying how, if it does not classify images, or for no such class.
    """
    is_digits = source.dataset == "digits"
    train, test, num_classes = _digits(source) if is_digits else _tfds(source)
    folders = () if is_digits else (user_path(source.data_dir).resolve(),)
    numbers = [name.strip() for name in chosen.split(",")] if chosen else range(num_classes)
    return [
        Category(name, count, folders, partial(_split, train, test, int(name)))
        for name in map(str, numbers)
        if (count := _num_train(train, name, num_classes))
    ]


def _num_train(train: np.ndarray, name: str, num_classes: int) -> int:
    if not name.isdecimal() or int(name) >= num_classes:
        raise UserError(
            f"config.normal_class={name}: the data set has the classes 0 to {num_classes - 1} "
            "(-1: each in turn)"
        )
    count = int((train["label"] == int(name)).sum())
    if not count:
        raise UserError(f"the data set has no training images of class {name}")
    return count


def _split(train: np.ndarray, test: np.ndarray, number: int) -> Split:
    """Return the training images of one class, and all test images."""
    members = np.flatnonzero(train["label"] == number)
    names = tuple(f"{label}/{i}" for i, label in enumerate(test["label"]))
    return Split(
        name=str(number),
        train=train["pixels"][members],
        train_names=tuple(f"{number}/{i}" for i in members),
        train_hashes=_hashes(train[members]),
        test=test["pixels"],
        test_names=names,
        test_sha256=sha256_of([*_hashes(test), *names]),
        labels=test["label"] != number,
        masks=None,
    )


def _hashes(rows: np.ndarray) -> tuple[str, ...]:
    return tuple(bytes(sha256).hex() for sha256 in rows["sha256"])


def _row_dtype(source: Source) -> np.dtype:
    pixels = ("pixels", np.uint8, (*source.size, 3))
    return np.dtype([pixels, ("sha256", np.uint8, 32), ("label", np.int64)])


def _rows(images: Sequence[np.ndarray], labels: Sequence[int], source: Source) -> np.ndarray:
    """Return decoded uint8 images [h, w, 1 or 3] resized, with their hashes and labels."""
    rows = np.empty(len(images), _row_dtype(source))
    for row, pixels, label in zip(rows, images, labels, strict=True):
        image = Image.fromarray(pixels.squeeze())
        row["pixels"] = resized(image, source.size, source.resize)
        row["sha256"] = np.frombuffer(pixel_hash(image), np.uint8)
        row["label"] = label
    return rows


def _digits(source: Source) -> tuple[np.ndarray, np.ndarray, int]:
    """Return 1797 digits of 8x8 pixels; of each class, 70 % are for training, always the same."""
    from sklearn.datasets import load_digits

    grey, labels = load_digits(return_X_y=True)
    images = np.round(grey.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    shuffled = np.random.default_rng(0).permutation(len(labels))
    rows = _rows(images[shuffled], labels[shuffled], source)
    is_train = np.zeros(len(rows), bool)
    for label in range(10):
        members = np.flatnonzero(rows["label"] == label)
        is_train[members[: round(0.7 * len(members))]] = True
    return rows[is_train], rows[~is_train], 10


def _tfds(source: Source) -> tuple[np.ndarray, np.ndarray, int]:
    dataset = source.dataset
    builder = _prepared_builder(dataset, user_path(source.data_dir))
    image_key, label_key = builder.info.supervised_keys
    missing = {"train", "test"} - set(builder.info.splits)
    if missing:
        raise UserError(f"dataset {dataset!r} has no split {' and no '.join(sorted(missing))}")

    def load(split: str) -> np.ndarray:
        info, examples = builder.info.splits[split], builder.as_data_source(split=split)

        def decoded(part: range) -> np.ndarray:
            chosen = [examples[i] for i in part]
            return _rows([e[image_key] for e in chosen], [e[label_key] for e in chosen], source)

        what = f"{dataset}-{split}-{source.size}-{source.resize}-v{DECODER_VERSION}"
        files = [Path(path) for path in info.filepaths]
        return cached_rows(files, what, _row_dtype(source), info.num_examples, decoded)

    return load("train"), load("test"), builder.info.features[label_key].num_classes


def _prepared_builder(dataset: str, data_dir: Path) -> Any:
    """Return the data set's builder.

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

    prepare = (
        'pip install tensorflow && python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{dataset}', data_dir='{{}}', file_format='array_record')"
        '.download_and_prepare()" (TensorFlow and the network are needed for this alone)'
    )
    there = f"dataset {dataset!r} is not prepared in {data_dir}"
    if not builder.is_prepared():
        raise UserError(f"{there}: {prepare.format(data_dir)}")
    if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{there} but as {info.file_format.value}, which cannot be read without TensorFlow: "
            f"set --config.data_dir=FOLDER after {prepare.format('FOLDER')}"
        )
    return builder
