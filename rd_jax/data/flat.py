"""Good images alone, straight in a folder: the category of the folder's name."""

from rd_jax.data import Category, Source
from rd_jax.data.folders import images_below, listed, looks_like_image, normalised
from rd_jax.data.mvtec import Files, category_of
from rd_jax.system.errors import UserError
from rd_jax.system.files import user_path


def is_flat(source: Source) -> bool:
    """Return whether `data_dir` holds images and no category."""
    folder = user_path(source.data_dir)
    if not folder.is_dir():
        return False
    there = listed(folder)
    is_category = any((inner / "train").is_dir() for inner in there.folders.values())
    return not is_category and any(map(looks_like_image, there.files))


def find_categories(source: Source, chosen: str) -> list[Category]:
    """Return the one category, whose images lie in `data_dir` and in folders in it."""
    folder = user_path(source.data_dir).absolute()
    name = normalised(folder.name)
    if chosen not in ("", name):
        raise UserError(
            f"category {chosen!r}: data_dir {folder} holds images, which are the category {name!r}"
        )
    files = Files(name, folder, tuple(sorted(images_below(folder))), (), has_masks=False)
    return [category_of(files, source)]
