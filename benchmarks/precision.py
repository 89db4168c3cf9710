"""Whether bfloat16 trains as well as float32: both on real images, by the short recipe.

python -m benchmarks.precision --data DATA_DIR --weights FILE [--categories bottle] [--seeds 0 1 2]
    [--epochs 40] [--budget SECONDS] [--json FILE]

DATA_DIR is in MVTec AD layout, FILE holds ResNet-18's ImageNet weights with torchvision's names.
Each dtype is that of training and of scoring, as in a run; "float32" is what XLA makes of it,
which on a GPU may be TF32. After 40 epochs the recipe stops gaining (docs/recipe.md). A training is
printed and saved when it is done; on a GPU those that 8 minutes do not hold are left out.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.limits import budget_of, deadline_of, one_gpu
from benchmarks.printed import print_heading, print_line, write_whole
from benchmarks.speed_jax import device_facts
from rd_jax import create_train_state, load_teacher, make_scorer
from rd_jax.config import SHORT
from rd_jax.data import Split
from rd_jax.data.mvtec import load_category
from rd_jax.data.order import steps_until
from rd_jax.method.loss import LOSSES
from rd_jax.method.metrics import METRICS, metrics_of
from rd_jax.method.models import Model
from rd_jax.method.models.batch_norm import fold_batch_norm
from rd_jax.method.train import make_parallel_train_steps
from rd_jax.run.loop import steps_per_dispatch, training
from rd_jax.run.scoring import Program, score_images

NAMES = ("image_auroc", "pixel_auroc", "aupro")
DTYPES = ("bfloat16", "float32")
OPTIMIZER = optax.adam(0.005, 0.5, 0.999)
RECIPE: dict[str, Any] = SHORT
LOSS, BATCH_SIZE, EMA = LOSSES[RECIPE["loss"]], RECIPE["batch_size"], RECIPE["ema"]
SCORED = 16  # images at a time


class Programs(NamedTuple):
    """What is compiled once for all trainings in a dtype."""

    model: Model
    train_steps: Any
    max_steps: int
    scorer: Program


def programs_of(backbone: str, dtype: str, size: int) -> Programs:
    """The networks in a dtype, and what runs them on images of this size."""
    model = Model(backbone, dtype=jnp.dtype(dtype))
    max_steps = steps_per_dispatch(BATCH_SIZE, (size, size))
    steps = make_parallel_train_steps(model, OPTIMIZER, LOSS, max_steps, ema=EMA)
    return Programs(model, steps, max_steps, make_scorer(model))


def train(programs: Programs, teacher: Any, split: Split, epochs: int, seed: int) -> dict[str, Any]:
    """The metrics of a whole training, as fractions."""
    model, steps, max_steps, scorer = programs
    first = create_train_state(model, OPTIMIZER, jax.random.key(seed), EMA)
    last_step = steps_until(epochs, len(split.train), BATCH_SIZE)
    length: Any = dict(last_step=last_step, batch_size=BATCH_SIZE, seed=seed)
    *_, (state, _, _) = training(steps, max_steps, teacher, split.train, first, **length)
    maps, scores = score_images(scorer, teacher, state.student_variables, split.test, SCORED)
    return metrics_of(maps, scores, split.labels, split.masks)


def per_cent(values: Sequence[float | None]) -> str:
    """Their mean, and the standard deviation of several."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "n/a"
    spread = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.2f}{spread}"


def trainings(
    splits: Sequence[Split],
    seeds: Sequence[int],
    train_one: Callable[[str, Split, int], dict[str, Any]],
    deadline: float | None,
) -> Iterator[dict[str, Any]]:
    """A row of each, in turns, so that what is left out is left out of both dtypes."""
    longest = 0.0
    order = ((seed, split, dtype) for seed in seeds for split in splits for dtype in DTYPES)
    for i, (seed, split, dtype) in enumerate(order):
        row = {"category": split.name, "dtype": dtype, "seed": seed}
        start = time.monotonic()
        if deadline is not None and start + longest > deadline:
            yield row | {"metrics": None, "seconds": 0.0}
            continue
        metrics = train_one(dtype, split, seed)
        seconds = time.monotonic() - start
        if i >= len(DTYPES):  # the first ones compile
            longest = max(longest, seconds)
        yield row | {"metrics": metrics, "seconds": seconds}


def print_training(row: Mapping[str, Any]) -> None:
    """A line of the table."""
    names = [row["category"], row["dtype"], str(row["seed"])]
    if row["metrics"] is None:
        print_line([*names, *["left out: the budget is spent"] * len(NAMES), ""])
    else:
        cells = [per_cent([row["metrics"][name]]) for name in NAMES]
        print_line([*names, *cells, f"{row['seconds']:.1f}"])


def print_means(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for each category and dtype, over the seeds that there are."""
    for category, dtype in dict.fromkeys((row["category"], row["dtype"]) for row in rows):
        alike = [row for row in rows if (row["category"], row["dtype"]) == (category, dtype)]
        found = [row["metrics"] for row in alike if row["metrics"]]
        cells = [per_cent([metrics[name] for metrics in found]) for name in NAMES]
        print_line([category, dtype, f"mean of {len(found)}", *cells, ""])


def compare(options: argparse.Namespace, start: float) -> None:
    """Trains; prints and writes each row."""
    facts = device_facts()
    budget = budget_of(options.budget, facts["platform"])
    facts |= {"jax": jax.__version__, "backbone": options.backbone, "budget_seconds": budget}
    facts |= {"image_size": options.image_size, "epochs": options.epochs, **RECIPE}
    print(", ".join(f"{name} {value}" for name, value in facts.items()), end="\n\n", flush=True)
    rows: list[dict[str, Any]] = []
    saved = {**facts, "trainings": rows}
    write_whole(options.json, saved)
    teacher = fold_batch_norm(load_teacher(options.backbone, options.weights))
    splits = [load_category(Path(options.data), c, options.image_size) for c in options.categories]
    programs = {d: programs_of(options.backbone, d, options.image_size) for d in DTYPES}

    def train_one(dtype: str, split: Split, seed: int) -> dict[str, Any]:
        return train(programs[dtype], teacher, split, options.epochs, seed)

    labels = [f"{METRICS[name].label} %" for name in NAMES]
    print_heading(["category", "dtype", "seed", *labels, "seconds"])
    for row in trainings(splits, options.seeds, train_one, deadline_of(start, budget)):
        print_training(row)
        rows.append(row)
        write_whole(options.json, saved)
    print_means(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the flags."""
    start = time.monotonic()
    description, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=description, epilog=rest)
    parser.add_argument("--data", required=True, help="folder of categories in MVTec AD layout")
    parser.add_argument(
        "--weights", required=True, help=".npz, .safetensors or .pth of the teacher"
    )
    parser.add_argument("--categories", nargs="+", default=["bottle"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--budget", type=float, help="seconds; 480 on a GPU, else no limit")
    parser.add_argument("--json", default="", help="where the figures are written, too")
    parser.add_argument("--backbone", default="resnet18", help="of teacher and student")
    parser.add_argument("--image_size", type=int, default=256)
    # Of several, one: they would have to divide the recipe's batch of 4.
    os.environ["CUDA_VISIBLE_DEVICES"] = one_gpu()
    compare(parser.parse_args(arguments), start)


if __name__ == "__main__":
    main()
