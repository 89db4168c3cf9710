"""Train from Python as `python -m rd_jax.main --config folder` does."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optax
from PIL import Image

from rd_jax.config import OWN_PARTS, get_config
from rd_jax.config.fields import OWN
from rd_jax.data import NORMAL, Category, Row, Source, Split, sha256_of
from rd_jax.data.decode import pixel_hash, placed
from rd_jax.data.rows import category_of, label_of
from rd_jax.method.loss import LossFunction
from rd_jax.predict.predictor import Predictor, load_predictor
from rd_jax.run.plan import Given, source_of
from rd_jax.system.errors import UserError
from rd_jax.system.files import user_path

Images = str | Path | Sequence[str | Path] | np.ndarray
_GIVEN = "images given to rd_jax.fit"  # stands for data_dir


def fit(
    images: Images,
    workdir: str | Path,
    *,
    loss: LossFunction | None = None,
    optimizer: optax.GradientTransformation | None = None,
    **fields: Any,
) -> Predictor:
    """Train on good images, set thresholds, and return a predictor for new images.

    `images` are a folder, a list of files, or uint8 arrays [N, h, w] or [N, h, w, 3] RGB. A folder
    DATA_DIR/CATEGORY/train/good is that category, with its test images; another folder is a
    category of its name. `fields` are fields of the config (see docs/config.md), with the defaults
    of the config `folder`. `loss` takes the teacher's and the student's features, like the losses
    of `rd_jax.method.loss`. An `optimizer` replaces the config's learning rate and betas. `workdir`
    gets the same checkpoints, thresholds and page as from the command. The same call goes on after
    an interruption. Raise UserError for arguments that are not allowed.

        predictor = fit("data/parts/bracket/train/good", "runs/mine", num_epochs=10)
        result = score_image(predictor, frame)
    """
    from rd_jax.run.training import train  # here, so that `import rd_jax` needs fewer packages

    if loss is not None:
        fields["loss"] = OWN + getattr(loss, "__name__", type(loss).__name__)
    config = get_config(**OWN_PARTS | _place_of(images) | fields)
    categories = _categories(images, config.category, source_of(config))
    train(config, user_path(workdir), given=Given(categories, loss, optimizer))
    return load_predictor(workdir)


def _place_of(images: Images) -> dict[str, str]:
    """Return the fields that say where the images are."""
    if not isinstance(images, str | Path):
        return {"data_dir": _GIVEN, "category": "images"}
    folder = user_path(images).absolute()
    if label_of(folder.name) == NORMAL and folder.parent.name == "train":
        category = folder.parent.parent
        return {"data_dir": str(category.parent), "category": category.name}
    return {"data_dir": str(folder)}


def _categories(images: Images, name: str, source: Source) -> list[Category]:
    """Return the category of files or arrays; nothing for a folder, which the config finds."""
    if isinstance(images, str | Path):
        return []
    if isinstance(images, np.ndarray):
        load = partial(_load_array, _checked(images), name, source)
        return [Category(name, len(images), (), load)]
    paths = tuple(user_path(path).absolute() for path in images)
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is not a file: give a list of image files")
    if not paths:
        raise UserError("the list of image files is empty")
    return [category_of(name, [Row(path, "train") for path in paths], source)]


def _checked(images: np.ndarray) -> np.ndarray:
    is_rgb = images.ndim == 4 and images.shape[3] == 3
    if images.dtype != np.uint8 or not (is_rgb or images.ndim == 3) or 0 in images.shape:
        raise UserError(
            f"images are {images.dtype} {list(images.shape)}: must be uint8 [N, h, w] or [N, h, w, "
            "3], grey or RGB"
        )
    return images


def _load_array(images: np.ndarray, name: str, source: Source) -> Split:
    pictures = [Image.fromarray(pixels) for pixels in images]
    return Split(
        name=name,
        train=np.stack([placed(picture, source.size, source.resize)[0] for picture in pictures]),
        train_names=tuple(str(i) for i in range(len(images))),
        train_hashes=tuple(map(pixel_hash, pictures)),
        test=np.zeros((0, *source.size, 3), np.uint8),
        test_names=(),
        test_sha256=sha256_of(()),
        labels=np.zeros(0, bool),
        masks=None,
    )
