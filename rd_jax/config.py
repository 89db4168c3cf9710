"""One table of fields: what a run can be told, what is allowed, and what depends on it."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Flag, auto
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_args

from rd_jax.method.loss import LOSSES
from rd_jax.method.models import BACKBONES
from rd_jax.method.models.bottleneck import Kind
from rd_jax.method.models.model import Direction
from rd_jax.method.score import Fusion
from rd_jax.method.size import Resize, height_and_width
from rd_jax.system.errors import UserError, printable

Config = Any  # an ml_collections.ConfigDict, or anything with FIELDS as attributes


class Rule(NamedTuple):
    """Which values of a field are allowed."""

    holds: Callable[[Any], bool]
    allowed: str


class Depends(Flag):
    """What depends on a field."""

    NOTHING = 0
    TRAINING = auto()  # what is trained: going on takes the same value
    SCORING = auto()  # maps and scores
    TRAINED = auto()  # what a checkpoint is: evaluation cannot take another value, either
    APPLIED = auto()  # what is done with distances: prediction and export can take another, too


class Field(NamedTuple):
    """One row of the table."""

    default: Any
    rule: Rule
    depends: Depends
    help: str
    takes: type | None = None  # another type than the default's, on the command line, too


def _one_of(values: Collection[str]) -> Rule:
    return Rule(lambda v: isinstance(v, str) and v in values, f"one of {', '.join(values)}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(minimum: int) -> Rule:
    return Rule(lambda value: _is_integer(value) and value >= minimum, f"an integer >= {minimum}")


def _number(holds: Callable[[float], bool], allowed: str) -> Rule:
    return Rule(
        lambda v: isinstance(v, float | int) and not isinstance(v, bool) and holds(v),
        f"a number {allowed}",
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value == printable(value)


def _is_seed(value: Any) -> bool:
    return _is_integer(value) and 0 <= value < 2**32


def _is_choice(value: Any, holds: Callable[[Any], bool]) -> bool:
    """Whether these are different values of which each one is allowed."""
    is_sequence = isinstance(value, tuple | list)
    return is_sequence and all(map(holds, value)) and len(set(value)) == len(value)


_TEXT = Rule(_is_text, "a printable text")
_NAME = Rule(lambda value: _is_text(value) and value != "", "a printable text, not empty")
_BOOLEAN = Rule(lambda value: isinstance(value, bool), "True or False")
_FRACTION = _number(lambda v: 0 <= v < 1, "in [0, 1)")


def _is_length(value: Any) -> bool:
    return _is_integer(value) and value > 0 and value % 32 == 0


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_length, value))


_SIZE = Rule(
    lambda value: _is_length(value) or _is_pair(value),
    "a positive multiple of 32, or two of them, height,width",
)
_SCALES = Rule(
    lambda v: (
        bool(_is_choice(v, lambda s: _is_integer(s) and 1 <= s <= 3) and v) and list(v) == sorted(v)
    ),
    "a non-empty ascending choice of (1, 2, 3)",
)
_SEED = Rule(_is_seed, "an integer from 0 to 2**32 - 1")
_SEEDS = Rule(
    lambda value: _is_choice(value, _is_seed),
    "a choice of different seeds, each an integer from 0 to 2**32 - 1",
)

_NOTHING, _SCORING, _APPLIED = Depends.NOTHING, Depends.SCORING, Depends.APPLIED
_TRAINING, _FIXED = Depends.TRAINING, Depends.TRAINING | Depends.TRAINED

# Defaults are the paper's values where it names them. Of data and teacher, hashes
# are compared instead of names.
FIELDS = {
    "data_dir": Field(
        "data/mvtec",
        _NAME,
        _NOTHING,
        "folder of categories in MVTec AD layout, or `synthetic`; of TFDS data sets for `dataset`",
    ),
    "category": Field(
        "", _TEXT, _NOTHING, "one, or several between commas; empty: all that `data_dir` holds"
    ),
    "joint": Field(False, _BOOLEAN, _FIXED, "one training for all these categories together"),
    "dataset": Field("", _TEXT, _FIXED, "`digits` or a set of TFDS, for novelty detection"),
    "normal_class": Field(-1, _integer(-1), _NOTHING, "of `dataset`; -1: each class in turn"),
    "image_size": Field(
        256, _SIZE, _TRAINING | _SCORING, "pixels: of a square, or height,width", takes=object
    ),
    "resize": Field(
        "stretch",
        _one_of(get_args(Resize)),
        _TRAINING | _SCORING,
        "to `image_size`; `fit`: with the aspect ratio kept, and the rest filled and left out",
    ),
    "backbone": Field(
        "wide_resnet50_2", _one_of(BACKBONES), _FIXED | _SCORING, "of teacher and student"
    ),
    "teacher_weights": Field(
        "imagenet",
        _NAME,
        _NOTHING,
        "`imagenet`, `embedded` (of `resnet10`, in the package), `random` or a "
        "`.safetensors`, `.npz` or `.pth` file with torchvision's names",
    ),
    "normalize": Field(
        True, _BOOLEAN, _FIXED | _SCORING, "by ImageNet's mean and deviation, else to [0, 1]"
    ),
    "direction": Field(
        "reverse",
        _one_of(get_args(Direction)),
        _FIXED | _SCORING,
        "the paper's; `forward`: a student like the teacher, which sees the image (STFPM)",
    ),
    "bottleneck": Field(
        "mff_oce",
        _one_of(get_args(Kind)),
        _FIXED | _SCORING,
        "`oce` leaves the fusion of the scales out; `pre` is the teacher's fourth stage, frozen",
    ),
    "scales": Field(
        (1, 2, 3), _SCALES, _TRAINING | _SCORING, "strides 4, 8, 16, in the loss and the map"
    ),
    "loss": Field(
        "per_position",
        _one_of(LOSSES),
        _FIXED,
        "the paper's; `flattened`: the authors' code's; `mixed`: the mean of the two",
    ),
    "batch_size": Field(16, _integer(1), _TRAINING, "over all devices, a multiple of their number"),
    "num_epochs": Field(200, _integer(1), _FIXED, "how often each image is used"),
    "learning_rate": Field(
        0.005, _number(lambda v: 0 < v < float("inf"), "> 0"), _FIXED, "of Adam, constant"
    ),
    "adam_b1": Field(0.5, _FRACTION, _FIXED, "Adam's average of gradients"),
    "adam_b2": Field(0.999, _FRACTION, _FIXED, "Adam's average of squared gradients"),
    "ema": Field(
        0.0,
        _FRACTION,
        _FIXED,
        "share that an average of weights and BatchNorm statistics keeps at each step; it is what "
        "is evaluated; 0: none",
    ),
    "seed": Field(0, _SEED, _FIXED, "of initial values, hold-out and order of images"),
    "seeds": Field(
        (), _SEEDS, _NOTHING, "one training for each, reported as mean and deviation; e.g. `0,1,2`"
    ),
    "holdout": Field(
        0.0, _FRACTION, _FIXED, "fraction of the training images kept aside for thresholds"
    ),
    "false_positive_rate": Field(
        0.01, _FRACTION, _APPLIED, "of new normal images above the threshold, kept if `holdout` can"
    ),
    "pixel_false_positive_rate": Field(
        0.001, _FRACTION, _APPLIED, "of held-out images' pixels above the threshold of masks"
    ),
    "rd4ad_checkpoint": Field(
        "", _TEXT, _FIXED, "a `.pth` file of the authors' code, for `--mode eval`"
    ),
    "dtype": Field(
        "auto",
        _one_of(("auto", "bfloat16", "float32")),
        _NOTHING,
        "of computation; `auto`: float32 on CPU, else bfloat16",
    ),
    "blur_sigma": Field(
        4.0,
        _number(lambda v: 0 <= v < float("inf"), ">= 0"),
        _SCORING | _APPLIED,
        "pixels; 0: no blur",
    ),
    "map_fusion": Field(
        "sum", _one_of(get_args(Fusion)), _SCORING | _APPLIED, "of the scales' maps"
    ),
    "image_score": Field("max", _one_of(("max", "sum")), _SCORING | _APPLIED, "of the map"),
    "log_every_steps": Field(20, _integer(1), _NOTHING, "a row in `metrics.jsonl`"),
    "eval_every_epochs": Field(0, _integer(0), _NOTHING, "0: after the last step alone"),
    "checkpoint_every_epochs": Field(20, _integer(0), _NOTHING, "0: after the last step alone"),
    "keep_optimizer": Field(
        False,
        _BOOLEAN,
        _NOTHING,
        "of a finished training: the optimiser's state, with which it can go on for more "
        "`num_epochs`, and the checkpoint before the last",
    ),
    "tensorboard": Field(False, _BOOLEAN, _NOTHING, "event files (`pip install tensorboardX`)"),
}

# For trainings of 5 to some 80 epochs, by measurement: docs/recipe.md.
SHORT = {"loss": "mixed", "batch_size": 4, "ema": 0.999}


def get_config(**changes: Any) -> Config:
    """An ml_collections.ConfigDict of the table's defaults, and what differs from them."""
    from ml_collections import ConfigDict, FieldReference  # not on every machine that trains

    unknown = sorted(changes.keys() - FIELDS.keys())
    if unknown:
        raise UserError(_no_such_field(unknown[0]))
    values = {name: field.default for name, field in FIELDS.items()} | changes
    return ConfigDict(
        {
            name: FieldReference(value, field_type=kind) if (kind := FIELDS[name].takes) else value
            for name, value in values.items()
        }
    )


def located(argv: Sequence[str]) -> list[str]:
    """The command line with a bare name behind --config as the path of the package's config.

    Raises UserError if the package has none of that name.
    """
    arguments = list(argv)
    for i, (before, argument) in enumerate(pairwise(["", *argv])):
        flag = "--config=" if argument.startswith("--config=") else ""
        name, colon, rest = argument.removeprefix(flag).partition(":")
        if (flag or before == "--config") and name.isidentifier():
            arguments[i] = f"{flag}{_shipped(name)}{colon}{rest}"
    return arguments


def _shipped(name: str) -> Path:
    """The path of a config that comes with the package."""
    folder = Path(str(files("rd_jax.configs")))
    path = folder / f"{name}.py"
    if not path.is_file():
        names = sorted(path.stem for path in folder.glob("[a-z]*.py"))
        raise UserError(
            f"--config {name}: there is no such config; there are {', '.join(names)}, or give the "
            "path of a file"
        )
    return path


def validate(config: Config, num_devices: int = 1) -> None:
    """Raises UserError for the first field that is unknown, or not allowed on `num_devices`."""
    names = config if hasattr(config, "keys") else vars(config)
    for name in sorted(set(names) - FIELDS.keys()):
        raise UserError(_no_such_field(name))
    for name, field in FIELDS.items():
        value = getattr(config, name, None)
        if not field.rule.holds(value):
            raise UserError(f"config.{name}={value!r}: must be {field.rule.allowed}")
    if config.dataset and config.category:
        raise UserError(
            f"config.category={config.category!r}: must be '' with config.dataset, whose classes "
            "config.normal_class chooses"
        )
    if config.dataset and config.joint:
        raise UserError(
            "config.joint=True: must be False with config.dataset, whose classes are each other's "
            "anomalies"
        )
    if not config.dataset and config.normal_class >= 0:
        raise UserError(f"config.normal_class={config.normal_class}: needs config.dataset")
    if config.blur_sigma > min(size_of(config)):
        raise UserError(
            f"config.blur_sigma={config.blur_sigma}: must be at most config.image_size="
            f"{config.image_size}"
        )
    if config.dataset and config.resize != "stretch":
        raise UserError(
            f"config.resize={config.resize!r}: must be 'stretch' with config.dataset, whose images "
            "have one shape"
        )
    if config.direction == "forward" and config.bottleneck != FIELDS["bottleneck"].default:
        raise UserError(
            f"config.bottleneck={config.bottleneck!r}: config.direction='forward' has none"
        )
    if config.batch_size % num_devices:
        raise UserError(
            f"config.batch_size={config.batch_size}: must be a multiple of the {num_devices} "
            f"devices, such as {-(-config.batch_size // num_devices) * num_devices}"
        )


def override(config: Config, changes: Mapping[str, Any]) -> None:
    """Sets fields of a config that was read. Raises UserError for a value that is not allowed."""
    with config.ignore_type():
        for name, value in changes.items():
            config[name] = value
    validate(config)


def _no_such_field(name: str) -> str:
    return f"config.{name}: there is no such field; there are {', '.join(FIELDS)}"


def with_seed(config: Config, seed: int) -> Config:
    """A copy of the config for one training."""
    copied = copy.deepcopy(config)
    copied.seed = seed
    return copied


def size_of(config: Config) -> tuple[int, int]:
    """Height and width of images in pixels."""
    return height_and_width(config.image_size)


def as_dict(config: Config) -> dict[str, Any]:
    """The fields as JSON-compatible values."""
    height, width = size_of(config)
    size = height if height == width else (height, width)
    values = {name: getattr(config, name) for name in FIELDS} | {"image_size": size}
    return {name: _as_json(value) for name, value in values.items()}


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def from_dict(values: Mapping[str, Any]) -> Config:
    """The inverse of `as_dict`; a field that was not there yet has its default."""
    known = {name: value for name, value in values.items() if name in FIELDS}
    return get_config(**{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})


def differing(
    before: Mapping[str, Any], now: Mapping[str, Any], depends: Depends
) -> list[tuple[str, Any, Any]]:
    """Name and both values of the fields that differ and on which one of `depends` depends.

    Both are as of `as_dict`; a field that one of them does not have has its default there.
    """
    defaults = {name: _as_json(field.default) for name, field in FIELDS.items()}
    before, now = {**defaults, **before}, {**defaults, **now}
    return [
        (name, before[name], now[name])
        for name, field in FIELDS.items()
        if field.depends & depends and before[name] != now[name]
    ]


def markdown() -> str:
    """The page that lists the fields: docs/config.md."""
    lines = [
        "# Config",
        "",
        "Every field of a config, set by `--config.NAME=VALUE`. Defaults are the paper's values; a",
        "config holds what differs from them.",
        "",
        "| field | default | allowed | |",
        "| --- | --- | --- | --- |",
    ]
    for name, field in FIELDS.items():
        default = f"`{field.default}`" if field.default != "" else ""
        lines.append(f"| `{name}` | {default} | {field.rule.allowed} | {field.help} |")
    return "\n".join(lines) + "\n"
