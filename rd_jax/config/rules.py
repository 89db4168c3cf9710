"""What values the fields of a config may have."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from rd_jax.system.errors import printable


class Rule(NamedTuple):
    """Which values of a field are allowed."""

    holds: Callable[[Any], bool]
    allowed: str


def one_of(values: Collection[str]) -> Rule:
    """Allow these texts, and those that are added to `values` later."""
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
    """Tell whether these are different values, each of which is allowed."""
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


TEXT = Rule(_is_text, "a printable text")
NAME = Rule(lambda value: _is_text(value) and value != "", "a printable text, not empty")
BOOLEAN = Rule(lambda value: isinstance(value, bool), "True or False")
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
