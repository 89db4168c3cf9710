"""What `benchmarks.speed` times of rd_jax: the method, and the reading of images."""

import os
import tempfile
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from benchmarks.implementation import (
    Call,
    Implementation,
    cpu_model,
    peak_process_bytes,
    random_images,
)
from rd_jax import create_train_state, make_scorer
from rd_jax.data.images import load_images
from rd_jax.method.loss import per_position_cosine_loss
from rd_jax.method.metrics import metrics_of
from rd_jax.method.models import Model
from rd_jax.method.models.batch_norm import fold_batch_norm
from rd_jax.method.train import make_parallel_train_steps
from rd_jax.run.loop import steps_per_dispatch, training
from rd_jax.run.scoring import score_images
from rd_jax.weights.teacher import find_teacher

_teacher = cache(lambda backbone: find_teacher(backbone, "random").variables)


def model_of(backbone: str) -> Model:
    """The paper's networks, in float32 on CPU and bfloat16 elsewhere."""
    is_cpu = jax.default_backend() == "cpu"
    return Model(backbone, dtype=jnp.float32 if is_cpu else jnp.bfloat16)


def device_facts() -> dict[str, Any]:
    """What JAX computes on."""
    platform, devices = jax.default_backend(), jax.local_devices()
    kind = cpu_model() if platform == "cpu" else devices[0].device_kind
    return {"platform": platform, "device": f"{len(devices)} x {kind}"}


def peak_bytes() -> int:
    """The most that the device ever held, or on a CPU this process."""
    return (jax.local_devices()[0].memory_stats() or {}).get(
        "peak_bytes_in_use", peak_process_bytes()
    )


def training_step(backbone: str, size: int, batch: int) -> Call:
    """Some steps of the training loop as a run executes it, from images on the host."""
    model, optimizer = model_of(backbone), optax.adam(0.005, 0.5, 0.999)
    max_steps = steps_per_dispatch(batch, (size, size))
    steps = make_parallel_train_steps(model, optimizer, per_position_cosine_loss, max_steps)
    state = create_train_state(model, optimizer, jax.random.key(0))
    endless: Any = dict(last_step=10**6, batch_size=batch, seed=0)
    images = random_images(256, size)
    dispatches = training(steps, max_steps, _teacher(backbone), images, state, **endless)

    def several() -> None:
        for _ in range(2):  # while one computes, the next one's images are gathered
            _, _, metrics = next(dispatches)
        jax.block_until_ready(metrics)

    return Call(several, 2 * max_steps)


def scoring(backbone: str, size: int, batch: int) -> Call:
    """From images on the host to maps and scores on the host."""
    model = model_of(backbone)
    trained = create_train_state(model, optax.sgd(1.0), jax.random.key(0)).student_variables
    student = jax.device_put(fold_batch_norm(trained))  # once, as an evaluation does
    images = random_images(batch, size)
    scorer = make_scorer(model)
    return Call(partial(score_images, scorer, _teacher(backbone), student, images, batch))


def metrics(count: int, size: int) -> Call:
    """All metrics of so many maps."""
    maps = np.random.default_rng(0).random((count, size, size), np.float32)
    labels = np.arange(count) % 2 == 0
    masks = np.zeros(maps.shape, bool)
    masks[::2, size // 4 : size // 2, size // 3 : size // 2] = True
    return Call(partial(metrics_of, maps, maps.max((1, 2)), labels, masks))


def decoding(count: int, size: int) -> Call:
    """Files of 900x900 pixels on all cores into a cache, which is a new one each time."""
    paths = _files(count)

    def as_a_run() -> None:
        with (
            tempfile.TemporaryDirectory() as cache_home,
            mock.patch.dict(os.environ, XDG_CACHE_HOME=cache_home),
        ):
            load_images(paths, size)

    return Call(as_a_run, count)


def decoding_by_pil(count: int, size: int) -> Call:
    """The same files one by one by PIL alone."""
    paths = _files(count)

    def plain() -> None:
        for path in paths:
            with Image.open(path) as image:
                np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))

    return Call(plain, count)


def _files(count: int) -> list[Path]:
    """Smooth images of 900x900 pixels, in a folder that `benchmarks.speed` removes."""
    paths = [Path(tempfile.mkdtemp()) / f"{i}.png" for i in range(count)]
    steps = np.random.default_rng(0).integers(-2, 3, (900, 900, 3))
    smooth = Image.fromarray((128 + np.cumsum(steps, axis=0)).astype(np.uint8))
    for path in paths:
        smooth.save(path)
    return paths


JOBS: dict[str, Callable[..., Call]] = {
    "training step": training_step,
    "scoring": scoring,
    "metrics": metrics,
    "decoding": decoding,
    "decoding by PIL": decoding_by_pil,
}


def implementation(_: str, is_cpu: bool) -> Implementation:
    """rd_jax on the device that JAX chooses, or on the CPU."""
    if is_cpu:
        jax.config.update("jax_platforms", "cpu")
    dtype = np.dtype(model_of("resnet18").dtype).name
    versions = {name: version(name) for name in ("jax", "flax")}
    return Implementation({**device_facts(), "dtype": dtype, **versions}, JOBS, peak_bytes)
