"""Many files at a time."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rd_jax.system.environment import num_processors
from rd_jax.system.errors import UserError


def each_file(read: Callable[..., Any], paths: Sequence, *others: Sequence) -> list:
    """`read` of all, in parallel; one error names all files that cannot be read."""

    def attempt(path: Path, *its_others: Any) -> tuple[Any, str | None]:
        try:
            return read(path, *its_others), None
        except Exception as error:  # decoders raise all kinds of errors for broken files
            return None, f"{path} ({str(error) or type(error).__name__})"

    with ThreadPoolExecutor(num_processors()) as pool:
        results = list(pool.map(attempt, paths, *others))
    failures = [failure for _, failure in results if failure]
    if failures:
        shown = "; ".join(failures[:3]) + ("; ..." if len(failures) > 3 else "")
        raise UserError(
            f"{len(failures)} of {len(paths) - paths.count(None)} files cannot be read: {shown}. "
            "Replace or remove them."
        )
    return [value for value, _ in results]
