"""The config of a run: one dataclass, its checks and its comparisons.

`Config` defines the flags of the command line, the checks, the comparison with earlier trainings
and the table in docs/config.md.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rd_jax.config.fields import EVALUATED_ALIKE, FIELDS, RATES, RECORDED, Config, Depends
from rd_jax.method.score import height_and_width
from rd_jax.system.errors import UserError

__all__ = [
    "EVALUATED_ALIKE",
    "FIELDS",
    "OWN_PARTS",
    "RATES",
    "RECORDED",
    "SHORT",
    "Config",
    "Depends",
]

# Measured best for trainings of 5 to about 80 epochs: docs/recipe.md.
SHORT = {"loss": "mixed", "batch_size": 4, "ema": 0.999}

# For a user's own parts: a backbone that trains on a laptop, and enough images held out.
OWN_PARTS = SHORT | {
    "backbone": "resnet18",
    "num_epochs": 20,
    "holdout": 0.1,
    "holdout_at_least": 20,
    "keep_optimizer": True,  # so that more epochs need no new training
}


def get_config(**changes: Any) -> Config:
    """Return the defaults with `changes`. Raise UserError for a field that does not exist."""
    for name in changes:
        check_field(name)
    return Config(**changes)


def check_field(name: str) -> None:
    """Raise UserError if there is no field of this name."""
    if name not in FIELDS:
        raise UserError(f"config.{name}: there is no such field; there are {', '.join(FIELDS)}")


def _conflicts(config: Config, num_devices: int) -> dict[str, tuple[bool, str]]:
    """Return, for each field, whether it contradicts another field, and what it must be."""
    size, batch = height_and_width(config.image_size), config.batch_size
    return {
        "category": (
            bool(config.dataset and config.category),
            "must be '' with config.dataset, whose classes config.normal_class chooses",
        ),
        "joint": (
            bool(config.dataset and config.joint),
            "must be False with config.dataset, whose classes are each other's anomalies",
        ),
        "normal_class": (not config.dataset and config.normal_class >= 0, "needs config.dataset"),
        "blur_sigma": (
            config.blur_sigma > min(size),
            f"must be at most config.image_size={config.image_size}",
        ),
        "resize": (
            bool(config.dataset) and config.resize != "stretch",
            "must be 'stretch' with config.dataset, whose images have one shape",
        ),
        "bottleneck": (
            config.direction == "forward" and config.bottleneck != FIELDS["bottleneck"].default,
            "config.direction='forward' has no bottleneck",
        ),
        "batch_size": (
            batch % num_devices > 0,
            f"must be a multiple of the {num_devices} devices, such as "
            f"{-(-batch // num_devices) * num_devices}",
        ),
    }


def validate(config: Config, num_devices: int = 1) -> None:
    """Raise UserError for the first field that is not allowed, on `num_devices` devices."""
    if not isinstance(config, Config):
        raise UserError(
            f"get_config of the config file returned a {type(config).__name__}: let it return "
            "rd_jax.config.get_config(NAME=VALUE, ...)"
        )
    for name, field in FIELDS.items():
        value = getattr(config, name)
        if not field.rule.holds(value):
            raise UserError(f"config.{name}={value!r}: must be {field.rule.allowed}")
    for name, (is_wrong, must) in _conflicts(config, num_devices).items():
        if is_wrong:
            raise UserError(f"config.{name}={getattr(config, name)!r}: {must}")


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return a copy with other values. Raise UserError if a value is not allowed."""
    copied = dataclasses.replace(config, **changes)
    validate(copied)
    return copied


def as_dict(config: Config) -> dict[str, Any]:
    """Return the fields as JSON-compatible values."""
    height, width = height_and_width(config.image_size)
    values = dataclasses.asdict(config)
    values["image_size"] = height if height == width else (height, width)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def from_dict(values: Mapping[str, Any]) -> Config:
    """Return the inverse of `as_dict`. A missing field gets its default."""
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if name in FIELDS
    }
    return Config(**known)


def differing(
    before: Mapping[str, Any], now: Mapping[str, Any], depends: Depends
) -> list[tuple[str, Any, Any]]:
    """Return name and both values of fields that differ and that `depends` is about.

    Both mappings are from `as_dict`. If one of them lacks a field, the default counts.
    """
    defaults = as_dict(Config())
    before, now = {**defaults, **before}, {**defaults, **now}
    return [
        (name, before[name], now[name])
        for name, field in FIELDS.items()
        if field.depends & depends and before[name] != now[name]
    ]


def markdown() -> str:
    """Return the page that lists the fields: docs/config.md."""
    lines = [
        "# Config",
        "",
        "You want to change a field of a config: add `--config.NAME=VALUE` to the command. The",
        "defaults are the paper's values. A config file holds what differs from them.",
        "",
        "| field | default | allowed | |",
        "| --- | --- | --- | --- |",
    ]
    for name, field in FIELDS.items():
        default = f"`{field.default}`" if field.default != "" else ""
        lines.append(f"| `{name}` | {default} | {field.rule.allowed} | {field.help} |")
    return "\n".join(lines) + "\n"


def plain() -> str:
    """Return the fields as text for a terminal, written as on the command line."""
    fields = (
        f"--config.{name}={field.default}\n    {field.help} ({field.rule.allowed})"
        for name, field in FIELDS.items()
    )
    return "\n".join(
        ["The fields of a config, with the paper's values. A config sets some.", *fields]
    )
