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


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing, as UTF-8."""
    write_whole(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON. NaN is not allowed."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; {} if there is no file or, with a warning, no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
        problem = "it holds no object"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problem = str(error)
    logger.warning("%s is left out, since it cannot be read (%s): mend or remove it", path, problem)
    return {}


def append_row(path: Path, row: Row) -> None:
    """Append one JSON line. NaN is not allowed."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Read the rows of steps in a file of JSON lines; none if there is no file."""
    rows = []
    for line in path.read_text("utf-8", "replace").splitlines() if path.exists() else ():
        # Half a line is of a run that was killed.
        with contextlib.suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def drop_rows_after(path: Path, step: int) -> None:
    """Keep the rows up to `step`, from which a training goes on."""
    if path.exists():
        kept = (row for row in read_rows(path) if row["step"] <= step)
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def csv_table(rows: Sequence[Row]) -> str:
    """Return rows as CSV with all their fields, empty where a row lacks one."""
    fields = list(dict.fromkeys(name for row in rows for name in row))
    table = io.StringIO()
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
