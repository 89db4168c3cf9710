"""Files of rows and arrays: JSON, JSON lines, CSV, npz. A row maps names to JSON's values."""

import contextlib
import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rd_jax.system.files import write_whole, writing

Row = Mapping[str, Any]
logger = logging.getLogger(__name__)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole or not at all. NaN is not allowed."""
    write_whole(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; {} if there is no file or, with a warning, no object."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, TypeError, ValueError) as error:
        logger.warning(
            "%s is left out, since it cannot be read (%s): mend or remove it", path, error
        )
        return {}


def append_row(path: Path, row: Row) -> None:
    """Append one JSON line. NaN is not allowed."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Read a file of JSON lines; no rows if there is no file."""
    rows = []
    for line in path.read_text("utf-8", "replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):  # a killed run may leave half a line
            rows.append(json.loads(line))
    return rows


def drop_rows_after(path: Path, step: int) -> None:
    """Remove the rows after `step`, from which a training goes on."""
    kept = [json.dumps(row) + "\n" for row in read_rows(path) if row["step"] <= step]
    write_whole(path, "".join(kept).encode())


def csv_table(rows: Sequence[Row]) -> str:
    """Return rows as CSV with all their fields, empty where a row lacks one."""
    table = io.StringIO()
    fields = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(table, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an .npz file of named arrays, whole or not at all."""
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    write_whole(path, file.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz file; {} if there is no file or, with a warning, a damaged one."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            return dict(file)
    except FileNotFoundError:
        return {}
    except Exception as error:  # zip files and arrays raise all kinds of errors
        logger.warning("%s is left out, since it cannot be read (%s)", path, error)
        return {}
