"""Kinds of sources of images: one row here and one file for each."""

from collections.abc import Callable
from typing import NamedTuple

from rd_jax.data import Category, Source, mvtec, one_class, synthetic


class _Kind(NamedTuple):
    is_of: Callable[[Source], bool]
    find: Callable[[Source, str], list[Category]]


_KINDS = (
    _Kind(lambda source: source.dataset != "", one_class.find_categories),
    _Kind(lambda source: source.data_dir == "synthetic", synthetic.find_categories),
    _Kind(lambda _: True, mvtec.find_categories),
)


def find_categories(source: Source, chosen: str = "") -> list[Category]:
    """List the categories that are chosen: by name, several between commas, or all.

    Nothing is decoded but data sets, whose classes are known no sooner. Names have accents as they
    are typed. Warns of images that are not used. Raises UserError for what is missing.
    """
    return next(kind for kind in _KINDS if kind.is_of(source)).find(source, chosen)
