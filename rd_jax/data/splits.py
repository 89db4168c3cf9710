"""Which splits a config asks for: categories of a folder, or classes of a data set."""

from collections.abc import Iterable
from pathlib import Path

from rd_jax.config import Config, size_of
from rd_jax.data import Split, mvtec, one_class, synthetic
from rd_jax.system import hosts
from rd_jax.system.errors import UserError
from rd_jax.system.files import cache_folder, composed, is_inside, temporary_cache, user_path


def chosen_name(config: Config) -> str:
    """The category or class that the config names, or categories between commas; "" for all."""
    if config.dataset:
        return "" if config.normal_class < 0 else str(config.normal_class)
    return config.category


def named(text: str, there: Iterable[str]) -> list[str]:
    """The names in a text: one that is there, whatever commas it has, or those between commas."""
    if "," not in text or composed(text) in map(composed, there):
        return [text]
    names = (composed(name.strip()) for name in text.split(","))
    return list(dict.fromkeys(filter(None, names))) or [text]


def check_splits(config: Config) -> list[str]:
    """Lists the files of what is chosen, and returns its names.

    Raises UserError for what is missing, in no time, or if processes see other names.
    """
    names = _names(config)
    if not hosts.all_same(names):
        raise UserError(
            f"the processes see different categories in data_dir {config.data_dir} (here "
            f"{', '.join(names)}): give all of them the same data"
        )
    if not config.dataset:
        names = [split_name(config, name) for name in names]
        if not config.category:
            mvtec.warn_of_unused(_data_dir(config), names)
    return names


def check_apart(config: Config, names: Iterable[str], workdir: Path) -> None:
    """Raises UserError if `workdir` lies in the data, or the data where a training is kept."""
    if config.dataset == "digits":  # which scikit-learn keeps
        return
    data_dir = _data_dir(config)
    for name in names:
        root = data_dir / name
        links = (folder for depth in ("*/", "*/*/") for folder in root.glob(depth))
        for folder in [data_dir] if config.dataset else [data_dir, root, *links]:
            if is_inside(workdir, folder):
                raise UserError(f"--workdir {workdir} lies in the data, {folder}: choose another")
            if is_inside(folder, workdir / name):
                raise UserError(
                    f"the data {folder} lie in {workdir / name}, where the training is kept: "
                    "choose another --workdir"
                )


def split_name(config: Config, name: str) -> str:
    """The name as the data have it, however its accents are spelled."""
    return name if config.dataset else mvtec.read_category(_data_dir(config), name).name


def num_train(config: Config, name: str) -> int:
    """How many training images the split of this name has."""
    if config.dataset:
        return len(load_split(config, name).train)
    return len(mvtec.read_category(_data_dir(config), name).train)


def sha256_of(config: Config, name: str) -> tuple[str, str]:
    """What a split says of its training images and of its test; files are not decoded for it."""
    if config.dataset:
        split = load_split(config, name)
        return split.train_sha256, split.test_sha256
    hashes = mvtec.hashes_of(mvtec.read_category(_data_dir(config), name))
    return hashes.train, hashes.test


def load_split(config: Config, name: str) -> Split:
    """The split of this name, decoded."""
    if not config.dataset:
        return mvtec.load_category(_data_dir(config), name, size_of(config), config.resize)
    if not name.isdecimal():
        raise UserError(f"{name!r} is not a class of dataset {config.dataset!r}: it is no number")
    return one_class.one_class(_classes(config), int(name))


def _names(config: Config) -> list[str]:
    if config.category:
        return named(config.category, (path.name for path in _data_dir(config).glob("*/")))
    if config.normal_class >= 0:
        return [chosen_name(config)]
    if config.dataset:
        return [str(label) for label in range(_classes(config).num_classes)]
    return mvtec.find_categories(_data_dir(config))


def _classes(config: Config) -> one_class.Classes:
    return one_class.load_classes(config.dataset, config.data_dir, size_of(config))


def _data_dir(config: Config) -> Path:
    if config.data_dir == "synthetic":
        try:
            return synthetic.cached_data_dir(cache_folder())
        except OSError as error:  # of a full disk
            return synthetic.cached_data_dir(temporary_cache(str(error)))
    return user_path(config.data_dir)
