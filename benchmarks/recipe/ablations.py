"""Make the paper's ablations and contrasts.

Ablations: bottleneck, backbone, scales of the features. Contrasts: reverse or forward distillation,
the sum or the product of the scales' maps.

python -m benchmarks.recipe.ablations --data_dir data/mvtec --workdir runs/ablations
    [--seeds 0,1,2]

Every variant is a run of its own in WORKDIR/BACKBONE-BOTTLENECK-SCALES... After an interruption,
the same command goes on. It writes WORKDIR/GRID.{md,csv} for each grid.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any, NamedTuple, get_args

from rd_jax.config import changed, get_config
from rd_jax.method.models import BACKBONES
from rd_jax.method.models.model import Direction
from rd_jax.method.score import Fusion
from rd_jax.report.tables import markdown_protocol, markdown_table, per_cent
from rd_jax.store.rows import csv_table, read_json
from rd_jax.store.workdir import Workdir
from rd_jax.system.command import Parser, run_command
from rd_jax.system.errors import UserError
from rd_jax.system.files import write_whole
from rd_jax.weights.hub import IMAGENET

MAIN = "rd_jax.main"
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
        """Return the name of its folder in the workdir."""
        parts = [self.backbone, self.bottleneck, "".join(map(str, self.scales))]
        contrasts = {self.direction, self.map_fusion} - {"reverse", "sum"}
        return "-".join([*parts, *sorted(contrasts)])


def grid(name: str, backbone: str) -> list[Variant]:
    """Return the variants of one table. All but those of "backbone" have this `backbone`."""
    return {
        "bottleneck": [Variant(backbone, bottleneck=b) for b in ("pre", "oce", "mff_oce")],
        "backbone": [Variant(b) for b in IMAGENET],
        "scales": [Variant(backbone, scales=scales) for scales in SCALES],
        "direction": [Variant(backbone, direction=d) for d in get_args(Direction)],
        "map_fusion": [Variant(backbone, map_fusion=f) for f in get_args(Fusion)],
    }[name]


def train(variant: Variant, workdir: Path, fields: dict[str, Any]) -> dict[str, Any] | str:
    """Return a variant's mean over the categories, or the reason why there is none.

    A variant is a process of its own, so one that runs out of memory does not stop the others.
    """
    folder = workdir / variant.folder
    fields = fields | variant._asdict()
    fields["teacher_weights"] = fields["teacher_weights"].replace("BACKBONE", variant.backbone)
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    command = [sys.executable, "-m", MAIN, "--config", "mvtec", *flags, "--workdir", str(folder)]
    last = ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            last = line.strip() or last
    if process.returncode:
        return f"{last.removeprefix('error: ')} (exit code {process.returncode})"
    return read_json(Workdir(folder).results)["mean"]


def write_table(name: str, outcomes: dict[Variant, dict[str, Any] | str], workdir: Path) -> str:
    """Write one grid as CSV and Markdown; return the Markdown."""
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
    if finished:  # else keep the table of an earlier call
        write_whole(workdir / f"{name}.csv", csv_table(rows).encode())
        write_whole(workdir / f"{name}.md", text.encode())
    return text


def _protocol(variants: list[Variant], workdir: Path) -> str:
    """Return the settings that all variants share. The table's rows say in what they differ."""
    found = [read_json(Workdir(workdir / variant.folder).results) for variant in variants]
    rows = [row for results in found for row in results["categories"]]
    return f"{markdown_protocol(rows)}\n" if rows else ""


def _check(given: argparse.Namespace) -> None:
    """Raise UserError, before the first training, for flags that no variant could train with."""
    try:
        seeds = tuple(int(seed) for seed in given.seeds.split(","))
    except ValueError as error:
        raise UserError(f"--seeds={given.seeds}: give integers between commas") from error
    data = {"data_dir": given.data_dir, "category": given.category}
    changed(get_config(), data | {"seeds": seeds, "num_epochs": given.num_epochs})
    if given.teacher_weights == "imagenet" and given.backbone not in IMAGENET:
        raise UserError(
            f"--backbone={given.backbone} has no ImageNet weights: set --teacher_weights, such as "
            "--teacher_weights=embedded"
        )


def main(argv: Sequence[str]) -> int:
    """Train all variants and print the tables; return 2 if a variant failed."""
    again = "interrupted; the same command goes on from there"
    return run_command(lambda: _run(argv), lambda _: again)


def _run(argv: Sequence[str]) -> int:
    parser = Parser("python -m benchmarks.recipe.ablations", __doc__)
    parser.add_argument("--data_dir", required=True, help="folder in MVTec AD layout")
    parser.add_argument("--workdir", required=True, help="where variants and tables are kept")
    parser.add_argument("--category", default="", help="one category; default: all in data_dir")
    parser.add_argument("--grids", default=",".join(GRIDS), help="which tables")
    parser.add_argument("--seeds", default="0", help="several give mean and deviation")
    parser.add_argument("--num_epochs", type=int, default=200, help="of each training")
    parser.add_argument("--backbone", default="wide_resnet50_2", choices=BACKBONES)
    parser.add_argument("--teacher_weights", default="imagenet", help="BACKBONE: each one")
    given = parser.parse_args(argv)
    grids = given.grids.split(",")
    if not {*grids} <= {*GRIDS}:
        raise UserError(f"--grids={given.grids}: choose some of {','.join(GRIDS)}")
    workdir = Path(given.workdir).expanduser()
    fields = {name: getattr(given, name) for name in ("data_dir", "category", "teacher_weights")}
    fields |= {"seeds": f"({given.seeds},)", "num_epochs": given.num_epochs}
    _check(given)
    trained: dict[Variant, dict[str, Any] | str] = {}
    texts = []
    for name in grids:
        variants = grid(name, given.backbone)
        for variant in variants:
            if variant not in trained:
                trained[variant] = train(variant, workdir, fields)
        texts.append(write_table(name, {v: trained[v] for v in variants}, workdir))
    print("\n".join(texts))
    return 2 if any(isinstance(outcome, str) for outcome in trained.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
