"""Make the embedded teacher: a ResNet-10 that imitates an ImageNet network.

python -m benchmarks.teacher.embedded_teacher make FILE.safetensors [--source resnet18]
    [--weights imagenet]
python -m benchmarks.teacher.embedded_teacher compare FILE.safetensors FOLDER [--size 256]

`make` distils the source's features at all three scales. It uses procedural images, and crops of
the two photographs in scikit-learn. After an interruption it goes on from FILE.state. `compare`
prints the mean cosine similarity of both networks' features, for the images in a folder.
"""

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import count, islice
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.serialization import from_bytes, to_bytes
from flax.traverse_util import flatten_dict
from safetensors.numpy import save
from sklearn.datasets import load_sample_images
from tqdm import tqdm

from benchmarks.teacher.procedural import canvas
from rd_jax.data.decode import read_image, resized
from rd_jax.method.loss import per_position_cosine_loss
from rd_jax.method.models import BACKBONES, Features, Teacher, normalize
from rd_jax.method.models.blocks import Conv1x1
from rd_jax.method.models.init import init_variables
from rd_jax.system.command import keep_compiled_programs
from rd_jax.system.files import write_whole
from rd_jax.weights.convert import torch_name
from rd_jax.weights.teacher import load_teacher

BACKBONE = "resnet10"
CANVAS, CROP = 128, 96  # pixels
CROPS = 4  # of each canvas
BATCH = 64
SAVE_EVERY = 500  # steps


def crops(image: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield cut-outs [CROP, CROP, 3], mirrored and turned."""
    for _ in range(CROPS):
        y, x = rng.integers(0, CANVAS - CROP + 1, 2)
        cut = np.rot90(image[y : y + CROP, x : x + CROP], int(rng.integers(4)))
        yield cut[:, ::-1] if rng.random() < 0.5 else cut


def batches(seed: int, first: int) -> Iterator[np.ndarray]:
    """Yield batches uint8 [BATCH, CROP, CROP, 3] from batch `first` on; all processors draw them.

    The crops of a canvas go to successive batches, so that the crops of a batch differ.
    """
    make = partial(canvas, load_sample_images().images, CANVAS, seed)
    # Spawn processes, since JAX has threads, which a fork would break.
    with ProcessPoolExecutor(cpu_count(), get_context("spawn")) as pool:

        def started(group: int) -> Iterator[np.ndarray]:
            return pool.map(make, range(group * BATCH, (group + 1) * BATCH), chunksize=8)

        ahead = started(first // CROPS)
        for group in count(first // CROPS):
            canvases, ahead = ahead, started(group + 1)
            rng = np.random.default_rng((seed, group, 1))
            cut = [list(crops(image, rng)) for image in canvases]
            for i in range(CROPS):
                if group * CROPS + i >= first:
                    yield np.stack([of_canvas[i] for of_canvas in cut])


def imitation_loss(wanted: Features, got: Features) -> jax.Array:
    """Return the cosine distance, plus the squared error in units of the source's variance."""

    def squared_error(w: jax.Array, g: jax.Array) -> jax.Array:
        return jnp.mean((w - g) ** 2) / jnp.var(w)

    errors = [squared_error(w, g) for w, g in zip(wanted, got, strict=True)]
    return per_position_cosine_loss(wanted, got) + sum(errors, start=jnp.zeros(()))


class Imitator(nn.Module):
    """The small network that imitates.

    Where the source has other channels, a projection follows. It is thrown away at the end.
    """

    channels: Sequence[int]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> Features:
        """Return the features of `Teacher` in the source's channels."""
        features = Teacher(BACKBONE, name="teacher")(images, train)
        return tuple(
            f if f.shape[-1] == c else Conv1x1(c, name=f"projection{i}")(f)
            for i, (f, c) in enumerate(zip(features, self.channels, strict=True))
        )


def start(own: Any, source: Any) -> Any:
    """Return `own` with the values of layers that the source has, too: a good start."""
    if not isinstance(own, dict):
        return source if np.shape(source) == np.shape(own) else own
    return {name: start(v, source[name]) if name in source else v for name, v in own.items()}


def to_state_dict(variables: Any) -> dict[str, np.ndarray]:
    """Return torchvision's names and layouts, numpy arrays: the inverse of `convert_teacher`."""
    return {
        torch_name(path): np.ascontiguousarray(
            value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        )
        for path, value in flatten_dict(variables).items()
    }


def make(source: str, weights: str, path: Path, steps: int, seed: int) -> None:
    """Distil, and write the variables under torchvision's names, in float16."""
    wide = BACKBONES[source]
    channels = tuple(wide.planes * wide.block.expansion * factor for factor in (1, 2, 4))
    network, source_network = Imitator(channels), Teacher(source)
    source_variables = load_teacher(source, weights)
    rate = optax.warmup_cosine_decay_schedule(0, 2e-3, steps // 20, steps)
    optimizer = optax.adamw(rate, weight_decay=1e-4)

    example = jnp.zeros((1, CROP, CROP, 3))
    variables = init_variables(
        jax.eval_shape(network.init, jax.random.key(0), example), jax.random.key(seed)
    )
    for collection, own in variables.items():
        own["teacher"] = start(own["teacher"], source_variables[collection])
    state = {"step": 0, "variables": variables, "optimizer": optimizer.init(variables["params"])}
    kept = path.with_suffix(".state")
    if kept.exists():
        state = from_bytes(state, kept.read_bytes())

    @partial(jax.jit, donate_argnums=0)
    def train_step(state: Any, source_variables: Any, images: jax.Array) -> tuple[Any, jax.Array]:
        images = normalize(images)
        wanted = jax.tree.map(jax.lax.stop_gradient, source_network.apply(source_variables, images))

        def loss(params: Any) -> tuple[jax.Array, Any]:
            # Keep the source's first convolution: its gradient takes a third of a step on a CPU.
            stem = jax.lax.stop_gradient(params["teacher"]["conv1"])
            params = params | {"teacher": params["teacher"] | {"conv1": stem}}
            variables = {**state["variables"], "params": params}
            got, updated = network.apply(variables, images, train=True, mutable=["batch_stats"])
            return imitation_loss(wanted, got), updated

        params = state["variables"]["params"]
        (value, updated), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, kept = optimizer.update(gradient, state["optimizer"], params)
        variables = {"params": optax.apply_updates(params, updates), **updated}
        return {"step": state["step"] + 1, "variables": variables, "optimizer": kept}, value

    done = int(state["step"])
    progress = tqdm(islice(batches(seed, done), steps - done), initial=done, total=steps)
    for images in progress:
        state, value = train_step(state, source_variables, images)
        done += 1
        if done % SAVE_EVERY == 0 or done == steps:
            write_whole(kept, to_bytes(jax.device_get(state)))
        if done % 20 == 0:
            progress.set_postfix(loss=f"{float(value):.3f}")
    imitator = jax.device_get(state["variables"])
    distilled = {collection: tree["teacher"] for collection, tree in imitator.items()}
    content = save({n: v.astype(np.float16) for n, v in to_state_dict(distilled).items()})
    write_whole(path, content)
    kept.unlink()
    print(f"{path}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


def compare(path: Path, source: str, weights: str, images: Path, size: int) -> list[float]:
    """Return the mean cosine similarity of both networks' features, shallow to deep."""
    files = sorted(p for p in images.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    pixels = np.stack([resized(read_image(path), (size, size)) for path in files])
    variables = load_teacher(source, weights), load_teacher(BACKBONE, str(path))

    @jax.jit
    def similarity(variables: Any, images: jax.Array) -> jax.Array:
        images = normalize(images)
        both = [
            Teacher(name).apply(v, images)
            for name, v in zip((source, BACKBONE), variables, strict=True)
        ]
        scales = zip(*both, strict=True)
        return jnp.stack([1 - per_position_cosine_loss((w,), (g,)) for w, g in scales])

    means = np.mean([similarity(variables, pixels[i : i + 1]) for i in range(len(files))], axis=0)
    print(f"{len(files)} images at {size} pixels:", " ".join(f"{value:.4f}" for value in means))
    return means.tolist()


def main() -> None:
    """Parse the flags; make or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("make", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("--source", default="resnet18", choices=BACKBONES)
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=256)
    given = parser.parse_args()
    keep_compiled_programs()
    if given.what == "make":
        make(given.source, given.weights, given.file, given.steps, given.seed)
    else:
        compare(given.file, given.source, given.weights, given.images, given.size)


if __name__ == "__main__":
    main()
