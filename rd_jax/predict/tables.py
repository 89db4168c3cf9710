"""Write rows of predictions to predictions.csv, predictions.jsonl and index.html."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from rd_jax.predict.outputs import COLUMNS, FOLDERS, KINDS, Outputs
from rd_jax.report.predictions import Shown, with_rows, write_predictions
from rd_jax.store.lock import held
from rd_jax.store.rows import Row, read_rows
from rd_jax.system.errors import UserError
from rd_jax.system.files import write_whole, writing

TABLES = ("predictions.csv", "predictions.jsonl")


class Tables:
    """Two tables to which rows are appended, and the page that shows them."""

    def __init__(self, outputs: Outputs, rows: Sequence[Row]):
        self._folder, self._thresholds = outputs.folder, outputs.thresholds
        self._csv, self._jsonl = (outputs.folder / name for name in TABLES)
        self._shown = with_rows(Shown(), rows)
        # A table that is a link is replaced, since its target lies outside this folder.
        write_whole(self._csv, b"".join([_csv_line(COLUMNS), *map(_in_csv, rows)]))
        write_whole(self._jsonl, b"".join(map(_in_jsonl, rows)))

    def append(self, row: Row) -> None:
        """Append a row to both tables.

        It then outlives this process. Raise UserError if the disk is full; tables keep whole rows.
        """
        _append(self._csv, _in_csv(row))
        _append(self._jsonl, _in_jsonl(row))
        self._shown = with_rows(self._shown, [row])

    def write_page(self) -> None:
        """Write index.html from all rows so far."""
        write_predictions(self._folder, self._shown, self._thresholds)


@contextmanager
def begun(outputs: Outputs, names: Iterable[str]) -> Iterator[Tables]:
    """Begin new tables, and write the page at the end, also after an interruption.

    Remove the outputs of an earlier run, and files with the names of these outputs. Raise UserError
    if another process writes to the folder.
    """
    with _locked(outputs.folder):
        _remove_earlier(outputs, names)
        with _with_page(outputs, ()) as tables:
            yield tables


@contextmanager
def continued(outputs: Outputs) -> Iterator[tuple[Tables, list[Row]]]:
    """Go on with existing tables; yield them and their rows. Otherwise do as `begun`."""
    with _locked(outputs.folder):
        rows = read_rows(outputs.folder / TABLES[1])
        with _with_page(outputs, rows) as tables:
            yield tables, rows


@contextmanager
def _with_page(outputs: Outputs, rows: Sequence[Row]) -> Iterator[Tables]:
    outputs.write_scale()
    tables = Tables(outputs, rows)
    tables.write_page()
    try:
        yield tables
    except (KeyboardInterrupt, GeneratorExit):
        tables.write_page()
        raise
    tables.write_page()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with held(folder / ".predictions.lock") as is_free:
        if not is_free:
            raise UserError(
                f"--output {folder}: another process writes predictions there; wait for it to end, "
                "or choose another folder"
            )
        yield


def _remove_earlier(outputs: Outputs, names: Iterable[str]) -> None:
    """Remove files that the rows of an earlier run name, and files with the new names."""
    found = [path for name in names for path in outputs.paths(name)] + ["maps/scale.json"]
    with suppress(OSError, ValueError, AttributeError):  # there is no row, or half a row
        for line in (outputs.folder / TABLES[1]).read_text("utf-8").splitlines():
            found += map(str, filter(None, map(json.loads(line).get, KINDS)))
    remove(outputs.folder, found)


def remove(folder: Path, outputs: Iterable[str]) -> None:
    """Remove these files if they lie in FOLDERS of `folder`; rows might name other files."""
    for path in map(Path, outputs):
        if path.parts and path.parts[0] in FOLDERS and ".." not in path.parts:
            with suppress(OSError, ValueError):  # no file, or not even a name
                (folder / path).unlink()


def _in_jsonl(row: Row) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _in_csv(row: Row) -> bytes:
    """Return the line of a row, numbers with four significant digits."""
    values = (row[name] for name in COLUMNS)
    return _csv_line(_rounded(x) if isinstance(x, float) else x for x in values)


def _rounded(number: float) -> str:
    return np.format_float_positional(number, 4, unique=False, fractional=False, trim="-")


def _csv_line(values: Iterable[Any]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue().encode("utf-8", "surrogateescape")  # file names may be any bytes


def _append(path: Path, line: bytes) -> None:
    """Append the whole line or nothing."""
    with writing(path), path.open("ab", buffering=0) as file:
        start = file.tell()
        try:
            while line:
                line = line[file.write(line) :]
        except BaseException:
            file.truncate(start)
            raise
