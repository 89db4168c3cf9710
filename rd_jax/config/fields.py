"""Define the fields of a config: default, help, allowed values, and what depends on each."""

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Flag, auto
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from rd_jax.method.loss import LOSSES
from rd_jax.method.models import BACKBONES
from rd_jax.method.models.bottleneck import Kind
from rd_jax.method.models.model import Direction
from rd_jax.method.score import Fusion, Reduction
from rd_jax.system.errors import printable


class Rule(NamedTuple):
    """The allowed values of a field."""

    holds: Callable[[Any], bool]
    allowed: str


def one_of(values: Collection[str]) -> Rule:
    """Allow these texts, and texts that are added to `values` later."""
    return Rule(lambda v: isinstance(v, str) and v in values, f"one of {', '.join(values)}")


def integer(minimum: int) -> Rule:
    """Allow integers from `minimum` on."""
    return Rule(lambda value: _is_integer(value) and value >= minimum, f"an integer >= {minimum}")


def number(holds: Callable[[float], bool], allowed: str) -> Rule:
    """Allow finite numbers for which `holds` is true."""
    return Rule(lambda value: _is_number(value) and holds(value), f"a number {allowed}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, float | int) and not isinstance(value, bool)
    return is_number and abs(value) < float("inf")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value == printable(value)


def _is_seed(value: Any) -> bool:
    return _is_integer(value) and 0 <= value < 2**32


def _are_different(value: Any, holds: Callable[[Any], bool]) -> bool:
    """Return whether these are different values that are all allowed."""
    is_sequence = isinstance(value, tuple | list)
    return is_sequence and all(map(holds, value)) and len(set(value)) == len(value)


def _is_length(value: Any) -> bool:
    return _is_integer(value) and value > 0 and value % 32 == 0


def _is_size(value: Any) -> bool:
    is_pair = isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_length, value))
    return _is_length(value) or is_pair


def _are_scales(value: Any) -> bool:
    are_scales = _are_different(value, lambda scale: _is_integer(scale) and 1 <= scale <= 3)
    return are_scales and len(value) > 0 and list(value) == sorted(value)


OWN = "own:"  # prefix for the name of a loss given to `rd_jax.fit`
TEXT = Rule(_is_text, "a printable text")
NAME = Rule(lambda value: _is_text(value) and value != "", "a printable text, not empty")
BOOLEAN = Rule(lambda value: isinstance(value, bool), "True or False")
SHARE = number(lambda v: 0 <= v < 1 or v == int(v) >= 1, "in [0, 1), or an integer >= 1")
FRACTION = number(lambda v: 0 <= v < 1, "in [0, 1)")
POSITIVE = number(lambda v: v > 0, "> 0")
NOT_NEGATIVE = number(lambda v: v >= 0, ">= 0")
SIZE = Rule(_is_size, "a positive multiple of 32, or two of them, height,width")
SCALES = Rule(_are_scales, "a non-empty ascending choice of (1, 2, 3)")
SEED = Rule(_is_seed, "an integer from 0 to 2**32 - 1")
SEEDS = Rule(
    lambda value: _are_different(value, _is_seed),
    "a choice of different seeds, each an integer from 0 to 2**32 - 1",
)


class Depends(Flag):
    """What depends on a field. `data_dir` and `teacher_weights` are compared by content."""

    NOTHING = 0
    STEPS = auto()  # the steps of a training: resuming needs the same value
    CHECKPOINT = auto()  # the checkpoint: evaluating it needs the same value
    SCORES = auto()  # scores and thresholds: seeds are averaged only if their values are equal
    RATES = auto()  # thresholds only: prediction and export can take another value


_STEPS, _SCORES = Depends.STEPS, Depends.SCORES
_FIXED = Depends.STEPS | Depends.CHECKPOINT
_RATE = Depends.SCORES | Depends.RATES


class Field(NamedTuple):
    """The definition of one field."""

    default: Any
    help: str
    depends: Depends
    rule: Rule


def _field(default: Any, rule: Rule, help: str, depends: Depends = Depends.NOTHING) -> Any:  # noqa: A002
    field = Field(default, help, depends, rule)
    return dataclasses.field(default=default, metadata={"field": field})


@dataclass(kw_only=True, slots=True)
class Config:
    """The settings of a run. Defaults are the paper's values where it names them."""

    data_dir: str = _field(
        "data/mvtec",
        NAME,
        "a folder of categories or of good images, a table of images, or `synthetic` (generated "
        "images); with `dataset`, the folder of TFDS's sets",
    )
    category: str = _field(
        "", TEXT, "one category, or several with commas between them; empty: all in `data_dir`"
    )
    joint: bool = _field(False, BOOLEAN, "train one student for all these categories", _FIXED)
    dataset: str = _field("", TEXT, "for novelty detection: `digits` or a TFDS set", _FIXED)
    normal_class: int = _field(-1, integer(-1), "the normal class of `dataset`; -1: each in turn")
    image_size: int | tuple[int, int] = _field(
        256, SIZE, "size of images in pixels: of a square, or height,width", _STEPS | _SCORES
    )
    resize: Literal["stretch", "fit"] = _field(
        "stretch",
        one_of(("stretch", "fit")),
        "how an image gets this size; `fit` keeps its aspect ratio and mirrors it into the rest",
        _STEPS | _SCORES,
    )
    backbone: str = _field(
        "wide_resnet50_2", one_of(BACKBONES), "the network of teacher and student", _FIXED | _SCORES
    )
    teacher_weights: str = _field(
        "imagenet",
        NAME,
        "`imagenet`, `embedded` (in the package, for `resnet10`), `random`, or a "
        "`.safetensors`, `.npz` or `.pth` file with torchvision's names",
    )
    normalize: bool = _field(
        True, BOOLEAN, "by ImageNet's mean and deviation; False: to [0, 1] only", _FIXED | _SCORES
    )
    direction: Direction = _field(
        "reverse",
        one_of(get_args(Direction)),
        "`reverse`: the paper's; `forward`: a student that sees the image (STFPM)",
        _FIXED | _SCORES,
    )
    bottleneck: Kind = _field(
        "mff_oce",
        one_of(get_args(Kind)),
        "`oce`: without the fusion of the scales; `pre`: the teacher's fourth stage, frozen",
        _FIXED | _SCORES,
    )
    scales: tuple[int, ...] = _field(
        (1, 2, 3), SCALES, "scales in the loss and the map: strides 4, 8 and 16", _STEPS | _SCORES
    )
    loss: str = _field(
        "per_position",
        Rule(
            lambda v: isinstance(v, str) and (v in LOSSES or v.startswith(OWN)),
            f"one of {', '.join(LOSSES)}",
        ),
        "`per_position`: the paper's; `flattened`: that of the authors' code; `mixed`: their mean",
        _FIXED,
    )
    batch_size: int = _field(16, integer(1), "over all devices, a multiple of their number", _STEPS)
    num_epochs: int = _field(200, integer(1), "how often training uses each image", _FIXED)
    learning_rate: float = _field(0.005, POSITIVE, "Adam's rate, constant", _FIXED)
    adam_b1: float = _field(0.5, FRACTION, "decay of Adam's average of gradients", _FIXED)
    adam_b2: float = _field(0.999, FRACTION, "decay of Adam's average of squares", _FIXED)
    ema: float = _field(
        0.0,
        FRACTION,
        "evaluate an average of weights and BatchNorm statistics, which keeps this share of itself "
        "at each step; 0: evaluate the last step",
        _FIXED,
    )
    seed: int = _field(0, SEED, "decides initial values, hold-out and order of images", _FIXED)
    seeds: tuple[int, ...] = _field(
        (), SEEDS, "one training for each seed; results show mean and deviation; e.g. `0,1,2`"
    )
    holdout: float = _field(
        0.0,
        SHARE,
        "training images held out for thresholds: a fraction, or from 1 on a number; must be 0 if "
        "the data have images for validation",
        _FIXED,
    )
    holdout_at_least: int = _field(
        0, integer(0), "with `holdout`: at least so many, but at most a third of the images", _FIXED
    )
    group_by: Literal["content", "near"] = _field(
        "content",
        one_of(("content", "near")),
        "images that are held out together and count once: equal ones; `near`: near copies, too",
        _FIXED,
    )
    false_positive_rate: float = _field(
        0.01, FRACTION, "share of new good images above the threshold, if `holdout` allows", _RATE
    )
    pixel_false_positive_rate: float = _field(
        0.001, FRACTION, "share of held-out images' pixels above the pixel threshold", _RATE
    )
    rd4ad_checkpoint: str = _field(
        "", TEXT, "a `.pth` file of the authors' code, for `--mode eval`", _FIXED
    )
    dtype: Literal["auto", "bfloat16", "float32"] = _field(
        "auto",
        one_of(("auto", "bfloat16", "float32")),
        "arithmetic of training; `auto`: float32 on CPU, else bfloat16; scores are always float32",
    )
    keep_features: bool | Literal["auto"] = _field(
        "auto",
        Rule(lambda v: isinstance(v, bool) or v == "auto", "`auto`, True or False"),
        "compute the teacher's features once and keep them on the devices; `auto`: if they fit "
        "into a quarter of the free memory",
    )
    blur_sigma: float = _field(4.0, NOT_NEGATIVE, "blur of the map in pixels; 0: none", _SCORES)
    map_fusion: Fusion = _field("sum", one_of(get_args(Fusion)), "over the scales' maps", _SCORES)
    image_score: Reduction = _field("max", one_of(get_args(Reduction)), "over the map", _SCORES)
    log_every_steps: int = _field(20, integer(1), "steps from row to row in `metrics.jsonl`")
    eval_every_epochs: int = _field(0, integer(0), "0: evaluate only after the last step")
    checkpoint_every_epochs: int = _field(20, integer(0), "0: save only after the last step")
    keep_optimizer: bool = _field(
        False,
        BOOLEAN,
        "after training, keep the checkpoint before the last and the optimiser's state, with which "
        "the training can go on for more `num_epochs`",
    )
    tensorboard: bool = _field(False, BOOLEAN, "event files; needs `pip install tensorboardX`")


def _typed_for_flags() -> None:
    """Give fields types that `config_flags` can parse: it knows neither Literal nor unions."""
    hints = get_type_hints(Config)
    for field in dataclasses.fields(Config):
        if (origin := get_origin(hints[field.name])) in (Literal, Union, UnionType):
            field.type = str if origin is Literal else object


_typed_for_flags()
FIELDS: dict[str, Field] = {f.name: f.metadata["field"] for f in dataclasses.fields(Config)}
RATES = tuple(name for name, field in FIELDS.items() if field.depends & Depends.RATES)
EVALUATED_ALIKE = tuple(name for name, field in FIELDS.items() if field.depends & Depends.SCORES)
RECORDED = (*(name for name, field in FIELDS.items() if field.depends), "teacher_weights")
