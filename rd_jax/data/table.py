"""Read a table of images, a row for each, as CSV, JSON lines or Parquet: docs/datasets.md."""

import csv
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from rd_jax.data import NORMAL, Category, Row, Source, chosen_of
from rd_jax.data.folders import images_below, normalised
from rd_jax.data.rows import SPLITS, category_of, label_of
from rd_jax.system.errors import UserError, printable
from rd_jax.system.files import user_path

logger = logging.getLogger(__name__)

COLUMNS = ("image", "split", "label", "mask", "category", "group")


def is_table(source: Source) -> bool:
    """Return whether `data_dir` has the suffix of a table, and is no folder."""
    path = user_path(source.data_dir)
    return path.suffix.lower() in (".csv", ".jsonl", ".parquet") and not path.is_dir()


def find_categories(source: Source, chosen: str) -> list[Category]:
    """Return the categories in a table: one, several between commas, or all.

    The order of the lines has no meaning. Warns of columns that are not used. Raises UserError for
    a wrong line, naming it, and for a missing mask if others of the category have one.
    """
    table = user_path(source.data_dir)
    found = chosen_of(_read(table), normalised(chosen), table)
    for name, lines in found.items():
        if all(row.split != "train" for row in lines.values()):
            raise UserError(f"{table}: category {name} has no images whose split is train")
        unmasked = (n for n, row in lines.items() if row.label != NORMAL and not row.masks)
        if (line := next(unmasked, None)) and any(row.masks for row in lines.values()):
            raise UserError(f"{table}, line {line}: it has no mask, as others of {name} have")
    return [
        category_of(name, sorted(lines.values(), key=lambda row: row.image.parts), source)
        for name, lines in found.items()
    ]


def _read(table: Path) -> dict[str, dict[int, Row]]:
    """Return the rows by category and line. Raises UserError naming the first wrong line."""
    found: dict[str, dict[int, Row]] = {}
    line_of: dict[tuple[str, str], int] = {}
    names: set[str] = set()
    root = None
    for line, cells in _lines(table):
        names.update(cells)
        text = {key: "" if value is None else str(value) for key, value in cells.items()}
        if root is None:  # paths begin in the table's folder, or in its parent
            places = table.parent, table.absolute().parent.parent
            root = next((p for p in places if os.path.exists(p / text.get("image", ""))), places[0])
        try:
            name = _category(text.get("category") or text.get("object") or table.stem)
            row = _row(text, root)
            if (first := line_of.setdefault((name, text["image"]), line)) != line:
                raise ValueError(f"{row.image} is in line {first}, too")
        except ValueError as error:
            raise UserError(f"{table}, line {line}: {error}: see docs/datasets.md") from error
        found.setdefault(name, {})[line] = row
    if not found:
        raise UserError(f"{table} has no rows: see docs/datasets.md")
    if unused := names - {*COLUMNS, "object"}:
        shown = printable(", ".join(sorted(unused)))
        logger.warning("%s: columns that are not used: %s", table, shown)
    return found


def _lines(table: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the number of each line and its cells by column."""
    if not table.is_file():
        raise UserError(f"data_dir {table} is not there: set --config.data_dir")
    if table.suffix.lower() == ".parquet":
        from pyarrow import parquet  # it comes with tensorflow-datasets

        yield from enumerate(parquet.read_table(table).to_pylist(), start=1)
        return
    line = 0
    # A name in another encoding matches no file, and the error names its line.
    with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        delimiter = max(",;\t", key=file.readline().count)
        file.seek(0)

        def counted() -> Iterator[str]:
            nonlocal line
            for text in file:
                line += 1
                yield text

        rows: Iterable = csv.DictReader(
            counted(), delimiter=delimiter, strict=True, restkey="beyond the last column"
        )
        if table.suffix.lower() == ".jsonl":
            rows = map(json.loads, filter(str.strip, counted()))
        try:
            for cells in rows:
                yield line, dict(cells)
        except (csv.Error, TypeError, ValueError) as error:
            raise UserError(f"{table}, line {line}: {error}") from error


@cache  # many rows share few names
def _category(name: str) -> str:
    name = normalised(name)
    if name[0] == "." or "/" in name or name != printable(name):
        raise ValueError(f"category {name!r} is no name of a folder")
    return name


def _row(text: Mapping[str, str], root: Path) -> Row:
    """Return the row of these cells. Raises ValueError if they are wrong."""
    for name in COLUMNS[:3]:
        if not text.get(name):
            raise ValueError(f"it has no {name}")
    image, split, label = root / text["image"], text["split"], label_of(text["label"])
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    if label != NORMAL and split != "test":
        raise ValueError(f"label {label!r}, but only good images are in {split}")
    if not os.path.isfile(image):
        raise ValueError(f"image {image} is not there")
    masks: tuple[Path, ...] = ()
    if text.get("mask"):
        mask = root / text["mask"]
        masks = tuple(images_below(mask)) if os.path.isdir(mask) else (mask,)
        if label == NORMAL:
            raise ValueError("a good image has a mask")
        if not masks or not os.path.isfile(masks[0]):
            raise ValueError(f"mask {mask} is not there")
    return Row(image, split, label, masks, text.get("group", ""))
