"""Lists images as a table in CSV, which you edit and train on: see docs/datasets.md.

python -m rd_jax.data FOLDER > parts.csv

FOLDER is what --config.data_dir takes.
"""

import csv
import sys
from collections.abc import Sequence

from rd_jax.data import Source
from rd_jax.data.sources import find_categories
from rd_jax.data.table import COLUMNS
from rd_jax.system.command import Parser, run_command


def main(argv: Sequence[str]) -> int:
    """Parse the flags, print the table; return the exit code."""

    def body() -> int:
        parser = Parser("python -m rd_jax.data", __doc__)
        parser.add_argument("folder", help="categories, good images, or a table")
        folder = parser.parse_args(argv).folder
        lines = csv.writer(sys.stdout, lineterminator="\n")
        lines.writerow(COLUMNS)
        for category in find_categories(Source(folder, "", (1, 1), "stretch")):
            for image, split, label, masks, group in category.rows:
                mask = masks[0].parent if len(masks) > 1 else "".join(map(str, masks))
                lines.writerow((image, split, label, mask, category.name, group))
        return 0

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
