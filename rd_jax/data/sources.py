"""Kinds of sources of images: one row here and one file for each."""

from rd_jax.data import Category, Source, mvtec, one_class, synthetic, table

_KINDS = (
    (lambda source: source.dataset != "", one_class.find_categories),
    (lambda source: source.data_dir == "synthetic", synthetic.find_categories),
    (table.is_table, table.find_categories),
    (lambda _: True, mvtec.find_categories),
)


def find_categories(source: Source, chosen: str = "") -> list[Category]:
    """List the categories that are chosen: by name, several between commas, or all.

    Nothing is decoded but data sets, whose classes are known no sooner. Names have accents as they
    are typed. Warns of images that are not used. Raises UserError for what is missing.
    """
    return next(find for is_of, find in _KINDS if is_of(source))(source, chosen)
