"""The paper's ablations: bottleneck, backbone and scales of the features; and its contrasts.

Reverse beside forward distillation, the sum of the scales' maps beside their product.

python -m benchmarks.ablations --data_dir data/mvtec --workdir runs/ablations [--seeds 0,1,2]

Every variant is a run of its own in WORKDIR/BACKBONE-BOTTLENECK-SCALES..., so that the same command
goes on where it was interrupted. Writes WORKDIR/GRID.{md,csv} for each grid.
"""

import os
import sys
from itertools import chain, combinations
from pathlib import Path
from typing import Any, NamedTuple, get_args

from absl import app, flags

from rd_jax.config import FIELDS, get_config
from rd_jax.method.models.model import Direction
from rd_jax.method.score import Fusion
from rd_jax.report.tables import markdown_table, per_cent, protocol
from rd_jax.run import training
from rd_jax.store.rows import csv_table, read_json, write_text
from rd_jax.store.workdir import Workdir
from rd_jax.system.compilation import keep_compiled_programs
from rd_jax.system.console import log_to_stderr
from rd_jax.system.errors import UserError
from rd_jax.weights.hub import IMAGENET

METRICS = ("image_auroc", "pixel_auroc", "aupro")
SCALES = tuple(chain.from_iterable(combinations((1, 2, 3), size) for size in (1, 2, 3)))
GRIDS = ("bottleneck", "backbone", "scales", "direction", "map_fusion")


class Variant(NamedTuple):
    """One cell of a grid."""

    backbone: str
    bottleneck: str = "mff_oce"
    scales: tuple[int, ...] = (1, 2, 3)
    direction: str = "reverse"
    map_fusion: str = "sum"

    @property
    def folder(self) -> str:
        """Where it is kept in the workdir."""
        parts = [self.backbone, self.bottleneck, "".join(map(str, self.scales))]
        contrasts = {self.direction, self.map_fusion} - {"reverse", "sum"}
        return "-".join([*parts, *sorted(contrasts)])


def grid(name: str, backbone: str) -> list[Variant]:
    """The variants of one table; `backbone` is that of the other grids than its own."""
    return {
        "bottleneck": [Variant(backbone, bottleneck=b) for b in ("pre", "oce", "mff_oce")],
        "backbone": [Variant(b) for b in IMAGENET],
        "scales": [Variant(backbone, scales=scales) for scales in SCALES],
        "direction": [Variant(backbone, direction=d) for d in get_args(Direction)],
        "map_fusion": [Variant(backbone, map_fusion=f) for f in get_args(Fusion)],
    }[name]


def train(variant: Variant, workdir: Path, **fields: Any) -> dict[str, Any] | str:
    """The mean over the categories of one variant, or why there is none."""
    config = get_config(**variant._asdict() | fields)
    config.teacher_weights = config.teacher_weights.replace("BACKBONE", variant.backbone)
    folder = workdir / variant.folder
    try:
        training.train(config, folder)
    except (UserError, OSError) as error:
        return str(error)
    return read_json(Workdir(folder).results)["mean"]


def write_table(name: str, outcomes: dict[Variant, dict[str, Any] | str], workdir: Path) -> str:
    """Writes one grid as CSV and Markdown and returns the latter."""
    cells, rows, failures = [], [], []
    for variant, outcome in outcomes.items():
        value = getattr(variant, name)
        label = value if isinstance(value, str) else ", ".join(map(str, value))
        if isinstance(outcome, str):
            failures.append(f"\n{label} failed: {outcome}\n")
            cells.append([label, *["failed"] * len(METRICS)])
            rows.append({name: label})
        else:
            cells.append([label, *(per_cent(outcome, metric) for metric in METRICS)])
            columns = [c for m in METRICS for c in (m, f"{m}_std") if c in outcome]
            rows.append({name: label, **{column: outcome[column] for column in columns}})
    finished = [variant for variant in outcomes if not isinstance(outcomes[variant], str)]
    table = markdown_table([name, *METRICS], cells)
    text = f"# Ablation: {name}\n\n{_protocol(finished, workdir)}{table}{''.join(failures)}"
    if finished:  # else a table of an earlier call stays as it is
        write_text(workdir / f"{name}.csv", csv_table(rows))
        write_text(workdir / f"{name}.md", text)
    return text


def _protocol(variants: list[Variant], workdir: Path) -> str:
    """What all variants have in common; their differences are the table's rows."""
    found = [read_json(Workdir(workdir / variant.folder).results) for variant in variants]
    rows = [row for results in found for row in results["categories"]]
    return f"{protocol(rows)}\n" if rows else ""


def main(_: list[str]) -> int:
    """Trains all variants and prints the tables; returns 2 if one could not be trained."""
    log_to_stderr()
    keep_compiled_programs()
    flag = flags.FLAGS
    workdir = Path(os.path.expanduser(flag.workdir))
    fields = {
        "data_dir": flag.data_dir,
        "category": flag.category,
        "teacher_weights": flag.teacher_weights,
        "seeds": tuple(int(seed) for seed in flag.seeds),
        "num_epochs": flag.num_epochs,
    }
    trained: dict[Variant, dict[str, Any] | str] = {}
    texts = []
    for name in flag.grids:
        variants = grid(name, flag.backbone)
        for variant in variants:
            if variant not in trained:
                trained[variant] = train(variant, workdir, **fields)
        outcomes = {variant: trained[variant] for variant in variants}
        texts.append(write_table(name, outcomes, workdir))
    print("\n".join(texts))
    return 2 if any(isinstance(outcome, str) for outcome in trained.values()) else 0


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "Folder in MVTec AD layout.", required=True)
    flags.DEFINE_string("workdir", None, "Where variants and tables are kept.", required=True)
    flags.DEFINE_string("category", "", "One category; default: all in data_dir.")
    flags.DEFINE_list("grids", list(GRIDS), "Which tables.")
    flags.DEFINE_list("seeds", ["0"], "Seeds; with several, their mean and deviation.")
    flags.DEFINE_integer("num_epochs", FIELDS["num_epochs"].default, "Epochs of each training.")
    flags.DEFINE_enum("backbone", "wide_resnet50_2", list(IMAGENET), "That of the other grids.")
    flags.DEFINE_string("teacher_weights", "imagenet", "As in configs; BACKBONE is replaced.")
    flags.register_validator(
        "grids", lambda names: names and set(names) <= set(GRIDS), f"of {GRIDS}"
    )
    flags.register_validator(
        "seeds", lambda seeds: seeds and all(map(str.isdecimal, seeds)), "integers"
    )
    try:
        app.run(main)
    except KeyboardInterrupt as error:
        sys.exit(f"{error or 'interrupted'}; the same command goes on from there")
