"""The flat configuration: its fields, and the one place where their values are checked."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp

from rd_jax.errors import UserError, printable
from rd_jax.models import BACKBONES, normalize
from rd_jax.models.bottleneck import Kind
from rd_jax.models.resnet import rescale


class Config(Protocol):
    """What `configs/*.py` return (an ml_collections.ConfigDict) and the functions read."""

    data_dir: str  # folder of categories in MVTec AD layout, or "synthetic"; or of TFDS data sets
    category: str  # one category; "" for all in data_dir
    dataset: str  # "" for categories; else a classification data set: "digits" or one of TFDS
    normal_class: int  # of dataset; -1 for each in turn
    image_size: int  # pixels, height and width
    backbone: str
    teacher_weights: str  # "imagenet", "random", "auto" or a file
    normalize: bool  # by ImageNet's mean and deviation; else images are scaled to [0, 1]
    bottleneck: Kind  # "mff_oce", "oce" or "pre"
    scales: tuple[int, ...]  # of 1, 2, 3: strides 4, 8, 16
    loss: str  # "per_position" (paper) or "flattened" (authors' code)
    batch_size: int  # over all devices
    num_epochs: int
    learning_rate: float
    adam_b1: float
    adam_b2: float
    seed: int  # initialisation and order of images
    seeds: tuple[int, ...]  # one training for each, instead of one with `seed`; () for that
    holdout: float  # fraction of the training images kept aside to set thresholds with
    false_positive_rate: float  # of the held-out images, and pixels, above their threshold
    rd4ad_checkpoint: str  # a .pth file of the authors' code to evaluate; "" for none
    dtype: str  # of computation: "auto", "bfloat16" or "float32"
    blur_sigma: float  # pixels; 0: no blur
    image_score: str  # "max" (paper) or "sum"
    log_every_steps: int
    eval_every_epochs: int  # 0: only after the last step
    checkpoint_every_epochs: int  # 0: only after the last step
    tensorboard: bool  # event files beside metrics.jsonl


class _Rule(NamedTuple):
    holds: Callable[[Any], bool]
    allowed: str


def _one_of(*values: str) -> _Rule:
    return _Rule(
        lambda value: isinstance(value, str) and value in values, "one of " + ", ".join(values)
    )


def _integer(minimum: int) -> _Rule:
    return _Rule(lambda value: _is_integer(value) and value >= minimum, f"an integer >= {minimum}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(holds: Callable[[float], bool], allowed: str) -> _Rule:
    return _Rule(
        lambda v: isinstance(v, float | int) and not isinstance(v, bool) and holds(v),
        f"a number {allowed}",
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value == printable(value)


_TEXT = _Rule(_is_text, "a printable text")
_NAME = _Rule(lambda value: _is_text(value) and value != "", "a printable text, not empty")
_BOOLEAN = _Rule(lambda value: isinstance(value, bool), "True or False")

_SEED = _Rule(lambda v: _is_integer(v) and 0 <= v < 2**32, "an integer from 0 to 2**32 - 1")

_RULES = {
    "data_dir": _NAME,
    "category": _TEXT,
    "dataset": _TEXT,
    "normal_class": _integer(-1),
    "image_size": _Rule(
        lambda value: _is_integer(value) and value > 0 and value % 32 == 0,
        "a positive multiple of 32",
    ),
    "backbone": _Rule(lambda value: value in BACKBONES, "one of " + ", ".join(BACKBONES)),
    "teacher_weights": _NAME,
    "normalize": _BOOLEAN,
    "bottleneck": _one_of(*get_args(Kind)),
    "scales": _Rule(
        lambda value: (
            isinstance(value, tuple | list)
            and len(value) > 0
            and all(_is_integer(v) and 1 <= v <= 3 for v in value)
            and list(value) == sorted(set(value))
        ),
        "a non-empty ascending choice of (1, 2, 3)",
    ),
    "loss": _one_of("per_position", "flattened"),
    "batch_size": _integer(1),
    "num_epochs": _integer(1),
    "learning_rate": _number(lambda v: 0 < v < float("inf"), "> 0"),
    "adam_b1": _number(lambda v: 0 <= v < 1, "in [0, 1)"),
    "adam_b2": _number(lambda v: 0 <= v < 1, "in [0, 1)"),
    "seed": _SEED,
    "seeds": _Rule(
        lambda value: (
            isinstance(value, tuple | list)
            and all(_SEED.holds(v) for v in value)
            and len(set(value)) == len(value)
        ),
        "a choice of different seeds, each an integer from 0 to 2**32 - 1",
    ),
    "holdout": _number(lambda v: 0 <= v < 1, "in [0, 1)"),
    "false_positive_rate": _number(lambda v: 0 <= v < 1, "in [0, 1)"),
    "rd4ad_checkpoint": _TEXT,
    "dtype": _one_of("auto", "bfloat16", "float32"),
    "blur_sigma": _number(lambda v: 0 <= v < float("inf"), ">= 0"),
    "image_score": _one_of("max", "sum"),
    "log_every_steps": _integer(1),
    "eval_every_epochs": _integer(0),
    "checkpoint_every_epochs": _integer(0),
    "tensorboard": _BOOLEAN,
}


def validate(config: Config, num_devices: int = 1) -> None:
    """Raises UserError for the first field that is unknown, or not allowed on `num_devices`."""
    fields: Any = config  # a ConfigDict, or anything that has attributes
    for name in sorted(set(fields if hasattr(fields, "keys") else vars(fields)) - _RULES.keys()):
        raise UserError(f"config.{name}: there is no such field; there are {', '.join(_RULES)}")
    for name, rule in _RULES.items():
        value = getattr(config, name, None)
        if not rule.holds(value):
            raise UserError(f"config.{name}={value!r}: must be {rule.allowed}")
    if config.dataset and config.category:
        raise UserError(
            f"config.category={config.category!r}: must be '' with config.dataset, whose classes "
            "config.normal_class chooses"
        )
    if not config.dataset and config.normal_class >= 0:
        raise UserError(f"config.normal_class={config.normal_class}: needs config.dataset")
    if config.blur_sigma > config.image_size:
        raise UserError(
            f"config.blur_sigma={config.blur_sigma}: must be at most config.image_size="
            f"{config.image_size}"
        )
    if config.batch_size % num_devices:
        raise UserError(
            f"config.batch_size={config.batch_size}: must be a multiple of the {num_devices} "
            "devices"
        )


def compute_dtype(config: Config) -> Any:
    """The networks' dtype of computation; "auto" is float32 on CPU, else bfloat16."""
    if config.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(config.dtype)


def input_scaling(config: Config) -> Callable[[jax.Array], jax.Array]:
    """From uint8 images to what the networks take."""
    return normalize if config.normalize else rescale


def with_seed(config: Config, seed: int) -> Config:
    """A copy of the config for one training."""
    copied = copy.deepcopy(config)
    copied.seed = seed
    return copied


def as_dict(config: Config) -> dict[str, Any]:
    """The fields as JSON-compatible values."""
    values = {name: getattr(config, name) for name in _RULES}
    return values | {name: list(values[name]) for name in ("scales", "seeds")}
