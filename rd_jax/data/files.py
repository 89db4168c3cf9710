"""Many files at a time."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from rd_jax.system.command import num_processors
from rd_jax.system.errors import UserError

T = TypeVar("T")


def each_file(read: Callable[..., T], paths: Sequence[Path | None], *others: Sequence) -> list[T]:
    """Return `read` of all, in parallel. Raises one UserError naming files that cannot be read."""
    failures = []

    def attempt(path: Path | None, *its_others: object) -> T | None:
        try:
            return read(path, *its_others)
        except Exception as error:  # decoders raise all kinds of errors for broken files
            failures.append(f"{path} ({str(error) or type(error).__name__})")
            return None

    with ThreadPoolExecutor(num_processors()) as pool:
        results = list(pool.map(attempt, paths, *others))
    if failures:
        shown = "; ".join(sorted(failures)[:3]) + ("; ..." if len(failures) > 3 else "")
        raise UserError(
            f"{len(failures)} of {len(paths) - list(paths).count(None)} files cannot be read: "
            f"{shown}. Replace or remove them."
        )
    return results  # type: ignore[return-value]
