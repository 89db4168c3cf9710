"""List all kinds of sources of images: one row here and one file for each."""

from rd_jax.data import Category, Source, mvtec, one_class, synthetic, table

_KINDS = (
    (lambda source: source.dataset != "", one_class.find_categories),
    (lambda source: source.data_dir == "synthetic", synthetic.find_categories),
    (table.is_table, table.find_categories),
    (lambda _: True, mvtec.find_categories),
)


def find_categories(source: Source, chosen: str = "") -> list[Category]:
    """List the chosen categories: one by name, several between commas, or all.

    Only classification data sets are decoded, since their labels say which classes there are. Names
    have accents as a keyboard types them. Warns of images that are not used. Raises UserError for
    missing folders, files or categories.
    """
    return next(find for is_of, find in _KINDS if is_of(source))(source, chosen)
