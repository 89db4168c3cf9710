"""The flat configuration: its fields, and the one place where their values are checked."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from rd_jax.errors import UserError
from rd_jax.models import BACKBONES
from rd_jax.models.bottleneck import Kind


class Config(Protocol):
    """What `configs/*.py` return (an ml_collections.ConfigDict) and the functions read."""

    data_dir: str  # folder of categories in MVTec AD layout, or "synthetic"
    category: str  # one category; "" for all in data_dir
    image_size: int  # pixels, height and width
    backbone: str
    teacher_weights: str  # "imagenet", "random", "auto" or a file
    bottleneck: Kind  # "mff_oce" or "oce"
    scales: tuple[int, ...]  # of 1, 2, 3: strides 4, 8, 16
    loss: str  # "per_position" (paper) or "flattened" (authors' code)
    batch_size: int  # over all devices
    num_epochs: int
    learning_rate: float
    adam_b1: float
    adam_b2: float
    seed: int  # initialisation and order of images
    dtype: str  # of computation: "auto", "bfloat16" or "float32"
    blur_sigma: float  # pixels; 0: no blur
    image_score: str  # "max" (paper) or "sum"
    log_every_steps: int
    eval_every_epochs: int  # 0: only after the last step
    checkpoint_every_epochs: int  # 0: only after the last step


class _Rule(NamedTuple):
    holds: Callable[[Any], bool]
    allowed: str


def _one_of(*values: str) -> _Rule:
    return _Rule(lambda value: value in values, "one of " + ", ".join(values))


def _integer(minimum: int) -> _Rule:
    return _Rule(lambda value: _is_integer(value) and value >= minimum, f"an integer >= {minimum}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(holds: Callable[[float], bool], allowed: str) -> _Rule:
    return _Rule(lambda v: isinstance(v, float | int) and holds(v), f"a number {allowed}")


_TEXT = _Rule(lambda value: isinstance(value, str), "a text")
_NAME = _Rule(lambda value: isinstance(value, str) and value != "", "a text that is not empty")

_RULES = {
    "data_dir": _NAME,
    "category": _TEXT,
    "image_size": _Rule(
        lambda value: _is_integer(value) and value > 0 and value % 32 == 0,
        "a positive multiple of 32",
    ),
    "backbone": _one_of(*BACKBONES),
    "teacher_weights": _NAME,
    "bottleneck": _one_of("mff_oce", "oce"),
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
    "seed": _Rule(lambda v: _is_integer(v) and 0 <= v < 2**32, "an integer from 0 to 2**32 - 1"),
    "dtype": _one_of("auto", "bfloat16", "float32"),
    "blur_sigma": _number(lambda v: 0 <= v < float("inf"), ">= 0"),
    "image_score": _one_of("max", "sum"),
    "log_every_steps": _integer(1),
    "eval_every_epochs": _integer(0),
    "checkpoint_every_epochs": _integer(0),
}


def validate(config: Config, num_devices: int = 1) -> None:
    """Raises UserError for the first field whose value is not allowed on `num_devices`."""
    for name, rule in _RULES.items():
        value = getattr(config, name, None)
        if not rule.holds(value):
            raise UserError(f"config.{name}={value!r}: must be {rule.allowed}")
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


def as_dict(config: Config) -> dict[str, Any]:
    """The fields as JSON-compatible values."""
    values = {name: getattr(config, name) for name in _RULES}
    return values | {"scales": list(config.scales)}
