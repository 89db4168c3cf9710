"""Prepare the timed parts of rd_jax: the method, and the reading of images."""

import os
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from benchmarks.speed.worker import Call, peak_process_bytes, random_images
from rd_jax import Model, create_train_state, make_scorer, per_position_cosine_loss
from rd_jax.data.order import first_epoch
from rd_jax.data.sources import Source, find_categories
from rd_jax.method.metrics import metrics_of
from rd_jax.method.models.batch_norm import fold_batch_norm
from rd_jax.method.train import make_parallel_train_steps
from rd_jax.run.batches import Batches, kept, streamed
from rd_jax.run.loop import dispatches, steps_per_dispatch
from rd_jax.run.programs import encoder
from rd_jax.weights.teacher import find_teacher

DTYPE = jnp.dtype(
    "float32" if jax.default_backend() == "cpu" else "bfloat16"
)  # of a run's training


def facts() -> dict[str, Any]:
    """Return JAX's device and versions."""
    versions = {name: version(name) for name in ("jax", "flax")}
    devices = jax.local_devices()
    device = f"{len(devices)} x {devices[0].device_kind}"
    return {"platform": jax.default_backend(), "device": device, "training": DTYPE.name, **versions}


def peak_bytes() -> int:
    """Return the most bytes that the device ever held; on a CPU, this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", peak_process_bytes())


def training_step(backbone: str, size: int, batch: int, keeps: bool = False) -> Call:
    """Prepare some steps as a run does them, from images on the host or kept teacher features."""
    model, optimizer = Model(backbone, dtype=DTYPE), optax.adam(0.005, 0.5, 0.999)
    teacher = find_teacher(backbone, "random").variables
    images = random_images(4 * batch, size)
    chosen = np.arange(len(images))
    take = streamed(images, chosen)
    if keeps:
        encode = partial(encoder(model, "teacher features", images[:batch].shape), teacher)
        take = kept(encode, images, chosen, first_epoch(0, len(images), batch))
    batches = Batches(take, len(images), batch, seed=0)
    bytes_of_batch = sum(x.nbytes for x in jax.tree.leaves(batches.of_steps(0, 1, 1)))
    max_steps = steps_per_dispatch(bytes_of_batch)
    endless = dispatches(
        make_parallel_train_steps(model, optimizer, per_position_cosine_loss, max_steps),
        max_steps,
        teacher,
        batches,
        create_train_state(model, optimizer, jax.random.key(0)),
        pauses=[10**9],
    )

    def several() -> None:
        for _ in range(2):  # while one dispatch computes, the next one gets its batches
            _, _, metrics = next(endless)
        jax.block_until_ready(metrics)

    return Call(several, 2 * max_steps)


def scoring(backbone: str, size: int, batch: int, dtype: str = "float32") -> Call:
    """Prepare to score, from images on the host to maps and scores on the host."""
    model = Model(backbone, dtype=jnp.dtype(dtype))
    trained = create_train_state(model, optax.sgd(1.0), jax.random.key(0)).student_variables
    student = jax.device_put(fold_batch_norm(trained))  # done once in an evaluation, too
    scorer, teacher = make_scorer(model), find_teacher(backbone, "random").variables
    images = random_images(batch, size)
    return Call(lambda: jax.device_get(scorer(teacher, student, images)))


def metrics(count: int, size: int) -> Call:
    """Prepare to compute all metrics of `count` maps."""
    maps = np.random.default_rng(0).random((count, size, size), np.float32)
    labels = np.arange(count) % 2 == 0
    masks = np.zeros(maps.shape, bool)
    masks[::2, size // 4 : size // 2, size // 3 : size // 2] = True
    return Call(partial(metrics_of, maps, maps.max((1, 2)), labels, masks))


def decoding(count: int, size: int, by_pil: bool = False) -> Call:
    """Prepare to decode images of 900x900 pixels: into a new cache as a run, or one by one by PIL.

    The first one is a test image.
    """
    folder = Path(tempfile.mkdtemp())
    steps = np.random.default_rng(0).integers(-2, 3, (900, 900, 3))
    smooth = Image.fromarray((128 + np.cumsum(steps, axis=0)).astype(np.uint8))
    paths = [folder / "part" / ("train" if i else "test") / f"good/{i}.png" for i in range(count)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth.save(path)

    def as_a_run() -> None:
        with (
            tempfile.TemporaryDirectory() as cache_home,
            mock.patch.dict(os.environ, XDG_CACHE_HOME=cache_home),
        ):
            for category in find_categories(Source(str(folder), "", (size, size), "stretch"), ""):
                category.load()

    def plain() -> None:
        for path in paths:
            with Image.open(path) as image:
                np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))

    return Call(plain if by_pil else as_a_run, count)
