"""How fast rd_jax is on this machine, beside PyTorch in the same run.

python -m benchmarks.speed [--cpu] [--json FILE]

PyTorch runs if it is installed (`make install EXTRAS=dev,parity`): the authors' structure as it
is (eager) and tuned (channels_last; on a GPU bfloat16 autocast, fused Adam, cudnn.benchmark).
Times are medians; the spread is that of the quarter and three-quarter points.
"""

import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from PIL import Image

from rd_jax import create_train_state, make_scorer
from rd_jax.data.images import load_images
from rd_jax.data.synthetic import write_category
from rd_jax.method.loss import per_position_cosine_loss
from rd_jax.method.metrics import metrics_of
from rd_jax.method.models import Model
from rd_jax.method.models.batch_norm import fold_batch_norm
from rd_jax.method.train import make_parallel_train_steps
from rd_jax.report.tables import markdown_table
from rd_jax.run.loop import steps_per_dispatch, training
from rd_jax.run.scoring import score_images
from rd_jax.store.rows import write_json
from rd_jax.weights.teacher import find_teacher


class Sizes(NamedTuple):
    """What is measured: images of 256 pixels, float32 on CPU and bfloat16 elsewhere."""

    train_batches: tuple[int, ...]
    score_batches: tuple[int, ...]
    repeats: int


GPU = Sizes(train_batches=(16, 64), score_batches=(1, 16, 64), repeats=20)
CPU = Sizes(train_batches=(4,), score_batches=(1, 8), repeats=5)
OWN = "rd_jax"  # among the implementations


class Timing(NamedTuple):
    """Seconds: median, quarter and three-quarter point."""

    median: float
    low: float
    high: float


def timing(samples: list[float]) -> Timing:
    """The summary of at least two samples."""
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, low, high)


def timed(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Times calls that return when they are done; the first two of each do not count.

    They take turns, so that a machine that slows down slows all of them down.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - start)
    return {name: timing(values[2:]) for name, values in samples.items()}


def divided(timings: Mapping[str, Timing], count: int) -> dict[str, Timing]:
    """The timings of one of so many things that each call does."""
    return {name: Timing(*(s / count for s in value)) for name, value in timings.items()}


def model_of(backbone: str) -> Model:
    """The paper's networks, in float32 on CPU and bfloat16 elsewhere."""
    is_cpu = jax.default_backend() == "cpu"
    return Model(backbone, dtype=jnp.float32 if is_cpu else jnp.bfloat16)


def train_steps(
    model: Model, teacher: Any, images: np.ndarray, batch_size: int
) -> tuple[Callable[[], None], int]:
    """Some steps of the training loop as a run executes it, from images on the host; how many."""
    optimizer = optax.adam(0.005, 0.5, 0.999)
    max_steps = steps_per_dispatch(batch_size, images.shape[1:3])
    steps = make_parallel_train_steps(model, optimizer, per_position_cosine_loss, max_steps)
    state = create_train_state(model, optimizer, jax.random.key(0))
    endless: Any = dict(last_step=10**6, batch_size=batch_size, seed=0)
    dispatches = training(steps, max_steps, teacher, images, state, **endless)

    def several() -> None:
        for _ in range(2):
            _, _, metrics = next(dispatches)
        jax.block_until_ready(metrics)

    return several, 2 * max_steps


def seconds_of_run(cache: Path, until: str, *arguments: str) -> float:
    """Seconds from the start of `rd_jax.main` to its first output with this text."""
    with tempfile.TemporaryDirectory() as workdir:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "rd_jax.main", *arguments, "--workdir", workdir],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        )
        assert process.stdout
        output = ""
        for line in process.stdout:
            output += line
            if until in line:
                break
        else:
            raise RuntimeError(f"rd_jax.main ended without {until!r}:\n{output}")
        seconds = time.perf_counter() - start
        process.kill()
        process.wait()
    return seconds


def cold_start(backbone: str, cache: Path) -> float:
    """Seconds from the start of a process to the end of its first training step."""
    return seconds_of_run(
        cache,
        ", loss ",
        *("--config", "demo", "--config.image_size=256", "--config.batch_size=4"),
        *(f"--config.backbone={backbone}", "--config.teacher_weights=random"),
        "--config.log_every_steps=1",
    )


def whole_category(backbone: str, data_dir: Path, cache: Path) -> float:
    """Seconds to train (200 epochs) and evaluate a category as large as `bottle`."""
    return seconds_of_run(
        cache,
        "Results are in",
        *("--config", "mvtec:weave", f"--config.data_dir={data_dir}"),
        *(f"--config.backbone={backbone}", "--config.teacher_weights=random"),
    )


def decoding(repeats: int) -> dict[str, Timing]:
    """Seconds for an image of 900x900 pixels, read to 256: as a run does it, and by PIL alone.

    A run decodes on all cores and writes its cache, which is a new one for each repetition.
    """
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.png" for i in range(32)]
        smooth = np.cumsum(rng.integers(-2, 3, (900, 900, 3)), axis=0)
        for path in paths:
            Image.fromarray((128 + smooth).astype(np.uint8)).save(path)

        def plain() -> None:
            for path in paths:
                with Image.open(path) as image:
                    np.asarray(image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR))

        def as_a_run() -> None:
            with (
                tempfile.TemporaryDirectory() as cache,
                mock.patch.dict(os.environ, XDG_CACHE_HOME=cache),
            ):
                load_images(paths, 256)[0]

        timings = timed({OWN: as_a_run, "PIL alone": plain}, repeats)
    return divided(timings, len(paths))


def metrics_of_maps(repeats: int) -> dict[str, Timing]:
    """Seconds for all metrics of 160 maps."""
    rng = np.random.default_rng(0)
    maps = rng.random((160, 256, 256), np.float32)
    labels = np.arange(160) % 2 == 0
    masks = np.zeros(maps.shape, bool)
    masks[::2, 60:100, 80:140] = True

    def call() -> None:
        metrics_of(maps, maps.max((1, 2)), labels, masks)

    return timed({OWN: call}, repeats)


def measure(backbone: str, sizes: Sizes) -> dict[str, dict[str, Timing]]:
    """Every figure by name and by implementation."""
    model = model_of(backbone)
    teacher = find_teacher(backbone, "random").variables
    trained = create_train_state(model, optax.sgd(1.0), jax.random.key(0)).student_variables
    student = jax.device_put(fold_batch_norm(trained))  # once, as an evaluation does
    scorer = make_scorer(model)
    on_gpu = jax.default_backend() == "gpu"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (256, 256, 256, 3), np.uint8)
    torch_kinds = ("eager", "tuned") if importlib.util.find_spec("torch") else ()
    figures: dict[str, dict[str, Timing]] = {}

    def beside_torch(
        own: Callable[[], Any], make: str, batch: np.ndarray, times: int = 1
    ) -> dict[str, Timing]:
        """`own`, which does so many times what PyTorch's function of `make` does once."""
        calls = {OWN: own}
        for kind in torch_kinds:
            from benchmarks import torch_baseline

            device = "cuda" if on_gpu and _torch_has_gpu() else "cpu"
            call = getattr(torch_baseline, make)(backbone, device, kind == "tuned")
            calls[f"PyTorch {kind}"] = partial(_repeat, times, call, batch)
        return divided(timed(calls, sizes.repeats), times)

    for size in sizes.train_batches:
        steps, count = train_steps(model, teacher, images, size)
        figures[f"training step, batch {size}"] = beside_torch(
            steps, "make_train_step", images[:size], count
        )
    for size in sizes.score_batches:
        batch = images[:size]
        score = partial(score_images, scorer, teacher, student, batch, size)
        figures[f"scoring, batch {size}"] = beside_torch(score, "make_scorer", batch)
    figures["metrics of 160 maps"] = metrics_of_maps(sizes.repeats)
    figures["decoding, one image"] = decoding(sizes.repeats)
    with tempfile.TemporaryDirectory() as cache:
        for state in ("empty", "warm"):
            seconds = cold_start(backbone, Path(cache))
            figures[f"cold start to first step, {state} cache"] = {OWN: Timing(*[seconds] * 3)}
    if on_gpu:
        with tempfile.TemporaryDirectory() as folder:
            write_category(Path(folder), num_train=209, num_test=16, size=256)
            for state in ("empty", "warm"):
                seconds = whole_category(backbone, Path(folder), Path(folder) / "cache")
                name = f"whole category, 200 epochs, {state} cache"
                figures[name] = {OWN: Timing(*[seconds] * 3)}
    return figures


def _repeat(times: int, call: Callable[[np.ndarray], Any], batch: np.ndarray) -> None:
    for _ in range(times):
        call(batch)


def _torch_has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def conditions(backbone: str) -> dict[str, Any]:
    """What the figures were measured on."""
    packages = [name for name in ("jax", "flax", "torch") if importlib.util.find_spec(name)]
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "backbone": backbone,
        "dtype": np.dtype(model_of(backbone).dtype).name,
        "peak_device_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
    }


def table(figures: dict[str, dict[str, Timing]]) -> str:
    """Milliseconds: median (spread)."""
    columns = list(dict.fromkeys(name for row in figures.values() for name in row))

    def cell(value: Timing | None) -> str:
        if value is None:
            return ""
        median, low, high = (1e3 * seconds for seconds in value)
        return f"{median:.1f} ({low:.1f} to {high:.1f})"

    rows = [[name, *(cell(row.get(column)) for column in columns)] for name, row in figures.items()]
    return markdown_table(["milliseconds", *columns], rows)


def main(_: list[str]) -> None:
    """Measures, prints and writes."""
    if flags.FLAGS.cpu:
        jax.config.update("jax_platforms", "cpu")
    backbone = flags.FLAGS.backbone
    figures = measure(backbone, CPU if jax.default_backend() == "cpu" else GPU)
    facts = conditions(backbone)
    print(", ".join(f"{name} {value}" for name, value in facts.items()), end="\n\n")
    print(table(figures))
    if flags.FLAGS.json:
        seconds = {
            name: {implementation: value._asdict() for implementation, value in row.items()}
            for name, row in figures.items()
        }
        write_json(Path(flags.FLAGS.json), {**facts, "seconds": seconds})


if __name__ == "__main__":
    flags.DEFINE_bool("cpu", False, "Measure the CPU, with sizes for a laptop.")
    flags.DEFINE_string("json", "", "Where the figures are written, too.")
    flags.DEFINE_string("backbone", "wide_resnet50_2", "Of teacher and student.")
    app.run(main)
