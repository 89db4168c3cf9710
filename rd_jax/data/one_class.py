"""A classification data set as one-class novelty detection, as in the paper's experiments.

One class is normal: its training images are trained on, and the test images of all other classes
are anomalous. The data set "digits" comes with scikit-learn; all others are from TFDS.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rd_jax.data import Category, Source, Split, chosen_names, sha256_of
from rd_jax.data.cache import cached_rows
from rd_jax.data.decode import DECODER_VERSION, pixel_hash, resized
from rd_jax.system.errors import UserError
from rd_jax.system.files import user_path


def find_categories(source: Source, chosen: str) -> list[Category]:
    """Decode a data set and return the chosen classes: one by number, or all.

    The data set is "digits", or one of TFDS in `data_dir` with splits train and test. Raises
    UserError if it is not prepared there (and says how), if it does not classify images, or if it
    lacks the class.
    """
    is_digits = source.dataset == "digits"
    train, test = _digits(source) if is_digits else _tfds(source)
    folders = () if is_digits else (user_path(source.data_dir).resolve(),)
    classes, counts = np.unique(train["label"], return_counts=True)
    num_train = dict(zip(map(str, classes), counts.tolist(), strict=True))
    names = chosen_names(chosen, num_train)
    for name in names:
        if name not in num_train:
            raise UserError(
                f"config.normal_class={name}: the data set has the classes {classes[0]} to "
                f"{classes[-1]} (-1: each in turn)"
            )
    return [
        Category(name, num_train[name], folders, partial(_split, train, test, int(name)))
        for name in names
    ]


def _split(train: np.ndarray, test: np.ndarray, number: int) -> Split:
    """Return the training images of one class, and all test images."""
    members = np.flatnonzero(train["label"] == number)
    names = tuple(f"{label}/{i}" for i, label in enumerate(test["label"]))
    return Split(
        name=str(number),
        train=train["pixels"][members],
        train_names=tuple(f"{number}/{i}" for i in members),
        train_hashes=tuple(train["sha256"][members].tolist()),
        test=test["pixels"],
        test_names=names,
        test_sha256=sha256_of([*test["sha256"].tolist(), *names]),
        labels=test["label"] != number,
        masks=None,
    )


def _row_dtype(source: Source) -> np.dtype:
    pixels = ("pixels", np.uint8, (*source.size, 3))
    return np.dtype([pixels, ("sha256", "U64"), ("label", np.int64)])


def _rows(examples: Iterable[tuple[np.ndarray, int]], source: Source) -> np.ndarray:
    """Return rows of decoded uint8 images [h, w, 1 or 3] and their labels."""
    how = source.size, source.resize
    images = ((Image.fromarray(pixels.squeeze()), label) for pixels, label in examples)
    rows = [(resized(image, *how), pixel_hash(image), label) for image, label in images]
    return np.array(rows, _row_dtype(source))


def _digits(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Return 1797 digits of 8x8 pixels. The same 70 % of each class are always for training."""
    from sklearn.datasets import load_digits

    grey, labels = load_digits(return_X_y=True)
    images = np.round(grey.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    shuffled = np.random.default_rng(0).permutation(len(labels))
    rows = _rows(zip(images[shuffled], labels[shuffled], strict=True), source)
    is_train = np.zeros(len(rows), bool)
    for label in range(10):
        members = np.flatnonzero(rows["label"] == label)
        is_train[members[: round(0.7 * len(members))]] = True
    return rows[is_train], rows[~is_train]


def _tfds(source: Source) -> tuple[np.ndarray, np.ndarray]:
    builder = _prepared_builder(source.dataset, user_path(source.data_dir))
    image_key, label_key = builder.info.supervised_keys

    def load(split: str) -> np.ndarray:
        info, examples = builder.info.splits[split], builder.as_data_source(split=split)

        def decoded(part: range) -> np.ndarray:
            chosen = (examples[i] for i in part)
            return _rows(((e[image_key], e[label_key]) for e in chosen), source)

        what = f"{source.dataset}-{split}-{source.size}-{source.resize}-v{DECODER_VERSION}"
        files = [Path(path) for path in info.filepaths]
        return cached_rows(files, what, _row_dtype(source), info.num_examples, decoded)

    return load("train"), load("test")


def _prepared_builder(dataset: str, data_dir: Path) -> Any:
    """Return a data set's builder. Raise UserError as `find_categories` says."""
    import tensorflow_datasets as tfds

    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    try:
        builder = tfds.builder(dataset, data_dir=data_dir)
        info = builder.info
        parts = [info.features[key] for key in info.supervised_keys or ()]
        if len(parts) != 2 or not all(map(isinstance, parts, kinds)):
            raise ValueError("it does not classify images")
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise UserError(
            f"dataset {dataset!r} is neither 'digits' nor a set of classified images in TFDS: see "
            "https://www.tensorflow.org/datasets/catalog/overview#image_classification"
        ) from error
    if not builder.is_prepared() or info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"dataset {dataset!r} is not prepared in {data_dir} as array_record, which is read "
            'without TensorFlow: pip install tensorflow && python -c "import tensorflow_datasets '
            f"as tfds; tfds.builder('{dataset}', data_dir='FOLDER', file_format='array_record')"
            '.download_and_prepare()" (only this needs the network and TensorFlow), and '
            "set --config.data_dir=FOLDER"
        )
    if missing := {"train", "test"} - set(info.splits):
        raise UserError(f"dataset {dataset!r} has no split {' and no '.join(sorted(missing))}")
    return builder
