"""Print tables that grow line by line, and write files that are whole at any time."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def print_line(cells: Iterable[str]) -> None:
    """Print a line of a Markdown table without delay."""
    print(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |", flush=True)


def print_heading(cells: Iterable[str]) -> None:
    """Print the first two lines. The first column is text; the others are aligned as numbers."""
    first, *others = cells
    print_line([first, *others])
    print_line(["---", *["---:"] * len(others)])


def write_json(path: str, value: Any) -> None:
    """Write JSON if there is a path. The old file stays until the new one is whole."""
    if path:
        new = Path(f"{path}.new")
        new.write_text(json.dumps(value, indent=2) + "\n")
        os.replace(new, path)
