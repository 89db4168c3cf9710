"""Score images as they arrive in a folder."""

import logging
import os
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rd_jax.data.folders import images_below
from rd_jax.predict.inputs import name_of_outputs, not_inputs
from rd_jax.predict.outputs import KINDS, Outputs, write_images
from rd_jax.predict.predictor import Prediction, Predictor, score_files
from rd_jax.predict.tables import continued, remove
from rd_jax.store.rows import Row
from rd_jax.system.command import num_processors
from rd_jax.system.errors import UserError

logger = logging.getLogger(__name__)

PATIENCE = 10  # looks at an unreadable file, which may still be in the middle of a copy


class _Seen(NamedTuple):
    """A file as a look found it. A new picture of the same name has another size or time."""

    bytes: int
    modified: float  # Unix time in seconds
    looks: int  # earlier looks that found the same


def watch(
    predictor: Predictor, folder: Path, outputs: Outputs, batch_size: int
) -> Generator[list[Row]]:
    """Score images that arrive in a folder; yield the rows of a batch when they are on disk.

    After each look into the folder, yield an empty list: the caller pauses, or closes the iterator.
    An image is scored if a second look finds it unchanged. An unreadable image gets its row after
    `PATIENCE` unchanged looks. An image with a row, of this run or an earlier one, gets another row
    only if its size or time changed. Raise UserError as `begun` and `score_files` do.
    """
    skipped = not_inputs(folder, outputs.folder)
    with continued(outputs) as (tables, rows), ThreadPoolExecutor(num_processors()) as pool:
        done = {(os.path.abspath(r["file"]), r.get("bytes"), r.get("modified")) for r in rows}
        taken = {row[kind].casefold() for row in rows for kind in KINDS if row[kind]}

        def named(path: Path) -> str:
            name = name_of_outputs(
                os.path.relpath(path, folder),
                lambda name: not taken.isdisjoint(outputs.paths(name.casefold())),
            )
            taken.update(outputs.paths(name.casefold()))
            remove(outputs.folder, outputs.paths(name))  # of a killed run, without a row
            return name

        for seen in _looks(folder, skipped):
            due = [path for path, file in seen.items() if file.looks in (1, PATIENCE)]
            due = [path for path in due if (os.path.abspath(path), *seen[path][:2]) not in done]
            for start in range(0, len(due), batch_size):
                batch = due[start : start + batch_size]
                results = [
                    result
                    for result in score_files(predictor, batch, batch_size, outputs.take_images)
                    if isinstance(result, Prediction) or seen[result.path].looks == PATIENCE
                ]
                names = [named(result.path) for result in results]
                written = pool.map(partial(write_images, outputs), results, names)
                rows = []
                for result, row in zip(results, written, strict=True):
                    size, modified, _ = seen[result.path]
                    rows.append({**row, "bytes": size, "modified": modified})
                    tables.append(rows[-1])
                    done.add((os.path.abspath(result.path), size, modified))
                if rows:
                    yield rows
            if due:
                tables.write_page()
            yield []


def _looks(folder: Path, skipped: set[str]) -> Iterator[dict[Path, _Seen]]:
    """Yield the files that each look into a folder finds. Log a folder that cannot be listed."""
    seen: dict[Path, _Seen] = {}
    problem = ""
    while True:
        before, seen = seen, {}
        try:
            for path in images_below(folder, skipped):
                with suppress(OSError):  # it is gone again
                    stat = path.stat()
                    was = before.get(path)
                    is_same = was is not None and was[:2] == (stat.st_size, stat.st_mtime)
                    looks = was.looks + 1 if was and is_same else 0
                    seen[path] = _Seen(stat.st_size, stat.st_mtime, looks)
            problem = ""
        except UserError as error:
            if str(error) != problem:
                logger.warning("%s", error)
            problem = str(error)
        yield seen
