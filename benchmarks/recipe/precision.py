"""Compare training in bfloat16 with float32, on real images, with the short recipe.

python -m benchmarks.recipe.precision --data DATA_DIR --weights FILE [--categories bottle]
    [--seeds 0 1 2] [--epochs 40] [--budget SECONDS] [--json FILE]

DATA_DIR is in MVTec AD layout. FILE holds ResNet-18's ImageNet weights with torchvision's names.
The dtype is that of training. For "float32" XLA may use TF32 on a GPU. Scores are float32, as in a
run. After 40 epochs the recipe stops gaining (docs/recipe.md). Each training is printed and saved
when it is done. On a GPU the budget is 8 minutes; trainings that do not fit are left out.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.table import print_heading, print_line, write_json
from rd_jax import Model, create_train_state, load_teacher, make_scorer
from rd_jax.data import Split
from rd_jax.data.order import steps_until
from rd_jax.data.sources import Source, find_categories
from rd_jax.method.loss import LOSSES
from rd_jax.method.metrics import METRICS, metrics_of
from rd_jax.method.models.batch_norm import fold_batch_norm
from rd_jax.method.train import make_parallel_train_steps
from rd_jax.run.batches import Batches, streamed
from rd_jax.run.loop import dispatches, steps_per_dispatch
from rd_jax.run.scoring import bound, score_images

NAMES = ("image_auroc", "pixel_auroc", "aupro")
DTYPES = ("bfloat16", "float32")
OPTIMIZER = optax.adam(0.005, 0.5, 0.999)
LOSS, BATCH_SIZE, EMA = "mixed", 4, 0.999  # as in configs/mvtec_short.py
SCORED = 16  # images at a time
BUDGET = 480.0  # seconds, on a GPU

TrainOne = Callable[[Split, int], dict[str, Any]]  # split and seed -> metrics


def trainer(teacher: Any, options: argparse.Namespace, dtype: str) -> TrainOne:
    """Return a function that trains and evaluates. It compiles once for all calls."""
    model = Model(options.backbone, dtype=jnp.dtype(dtype))
    max_steps = steps_per_dispatch(BATCH_SIZE * 3 * options.image_size**2)
    steps = make_parallel_train_steps(model, OPTIMIZER, LOSSES[LOSS], max_steps, ema=EMA)
    scorer = make_scorer(Model(options.backbone))

    def train(split: Split, seed: int) -> dict[str, Any]:
        first = create_train_state(model, OPTIMIZER, jax.random.key(seed), EMA)
        num_images = len(split.train)
        take = streamed(split.train, np.arange(num_images))
        batches = Batches(take, num_images, BATCH_SIZE, seed)
        last_step = steps_until(options.epochs, num_images, BATCH_SIZE)
        *_, (state, _, _) = dispatches(steps, max_steps, teacher, batches, first, [last_step])
        score = bound(scorer, teacher, state.student_variables)
        maps, scores = score_images(score, split.test, SCORED)
        return metrics_of(maps, scores, split.labels, split.masks)

    return train


def per_cent(values: Sequence[float | None]) -> str:
    """Return the mean and, for several values, the standard deviation."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "n/a"
    spread = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.2f}{spread}"


def trainings(
    splits: Sequence[Split],
    seeds: Sequence[int],
    train_in: Mapping[str, TrainOne],
    deadline: float | None,
) -> Iterator[dict[str, Any]]:
    """Yield a row for each training. Dtypes take turns, so a short budget cuts both alike."""
    longest = 0.0
    order = ((seed, split, dtype) for seed in seeds for split in splits for dtype in train_in)
    for i, (seed, split, dtype) in enumerate(order):
        row = {"category": split.name, "dtype": dtype, "seed": seed}
        start = time.monotonic()
        if deadline is not None and start + longest > deadline:
            yield row | {"metrics": None, "seconds": 0.0}
            continue
        metrics = train_in[dtype](split, seed)
        seconds = time.monotonic() - start
        if i >= len(train_in):  # the first trainings compile
            longest = max(longest, seconds)
        yield row | {"metrics": metrics, "seconds": seconds}


def print_training(row: Mapping[str, Any]) -> None:
    """Print a line of the table."""
    names = [row["category"], row["dtype"], str(row["seed"])]
    if row["metrics"] is None:
        print_line([*names, *["left out: the budget is spent"] * len(NAMES), ""])
    else:
        cells = [per_cent([row["metrics"][name]]) for name in NAMES]
        print_line([*names, *cells, f"{row['seconds']:.1f}"])


def print_means(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a line for each category and dtype: the mean over its seeds."""
    for category, dtype in dict.fromkeys((row["category"], row["dtype"]) for row in rows):
        alike = [row for row in rows if (row["category"], row["dtype"]) == (category, dtype)]
        found = [row["metrics"] for row in alike if row["metrics"]]
        cells = [per_cent([metrics[name] for metrics in found]) for name in NAMES]
        print_line([category, dtype, f"mean of {len(found)}", *cells, ""])


def compare(options: argparse.Namespace, start: float) -> None:
    """Train; print and write each row."""
    platform, size = jax.default_backend(), options.image_size
    budget = BUDGET if options.budget is None and platform != "cpu" else options.budget
    facts = {"platform": platform, "device": jax.local_devices()[0].device_kind}
    facts |= {"jax": jax.__version__, "backbone": options.backbone, "budget_seconds": budget}
    facts |= {"image_size": size, "epochs": options.epochs}
    facts |= {"loss": LOSS, "batch_size": BATCH_SIZE, "ema": EMA}
    print(", ".join(f"{name} {value}" for name, value in facts.items()), end="\n\n", flush=True)
    teacher = fold_batch_norm(load_teacher(options.backbone, options.weights))
    source = Source(options.data, "", (size, size), "stretch")
    splits = [found.load() for found in find_categories(source, ",".join(options.categories))]
    labels = [f"{METRICS[name].label} %" for name in NAMES]
    print_heading(["category", "dtype", "seed", *labels, "seconds"])
    train_in = {dtype: trainer(teacher, options, dtype) for dtype in DTYPES}
    rows: list[dict[str, Any]] = []
    for row in trainings(splits, options.seeds, train_in, start + budget if budget else None):
        print_training(row)
        rows.append(row)
        write_json(options.json, {**facts, "trainings": rows})
    print_means(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the flags and compare."""
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
    parser.add_argument("--json", default="", help="also write the figures to this file")
    parser.add_argument("--backbone", default="resnet18", help="of teacher and student")
    parser.add_argument("--image_size", type=int, default=256)
    # Use one GPU: several would have to divide the recipe's batch of 4.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[
        0
    ]
    compare(parser.parse_args(arguments), start)


if __name__ == "__main__":
    main()
