"""The scorer as one StableHLO file for CPU, GPU and TPU, which needs JAX and none of this."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax

from rd_jax.method.models import Model
from rd_jax.method.score import make_distances, make_maps
from rd_jax.method.size import Size, height_and_width

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def to_stablehlo(
    model: Model,
    teacher_variables: Any,
    student_variables: Any,
    *,
    size: Size,
    sigma: float = 4.0,
    reduction: str = "max",
    fusion: str = "sum",
    threshold: float | None = None,
    resize: str = "stretch",
) -> bytes:
    """The scorer of `make_scorer` in float32, with its variables, for `jax.export.deserialize`.

    It takes uint8 images [B, H, W, 3] of this `size`, any B, and returns a dict of "map" float32
    [B, H, W], "score" float32 [B] and, with a threshold, "anomalous" bool [B]: the score is
    above it. By `resize` "fit" it also takes int32 regions [B, 4], where in each image the picture
    lies (top, left, height, width); outside maps are 0. JAX's releases of the next six months read
    the file, at least; needs flatbuffers.
    """
    exact = dataclasses.replace(model, dtype=jnp.float32)
    distances, maps_of = make_distances(exact), make_maps(size, sigma, reduction, fusion)
    variables = jax.device_get((teacher_variables, student_variables))

    def scored(images: jax.Array, *regions: jax.Array) -> dict[str, jax.Array]:
        # Constants invite XLA to compute with them while it compiles; not those behind a barrier.
        teacher, student = lax.optimization_barrier(variables)
        maps, scores = maps_of(distances(teacher, student, images), *regions)
        outputs = {"map": maps, "score": scores}
        return outputs if threshold is None else outputs | {"anomalous": scores > threshold}

    (batch,) = export.symbolic_shape("batch")
    inputs = [jax.ShapeDtypeStruct((batch, *height_and_width(size), 3), jnp.uint8)]
    if resize == "fit":
        inputs.append(jax.ShapeDtypeStruct((batch, 4), jnp.int32))
    with _without_source_lines():
        exported = export.export(jax.jit(scored), platforms=PLATFORMS)(*inputs)
        return bytes(exported.serialize())


@contextmanager
def _without_source_lines() -> Iterator[None]:
    """Keeps this machine's paths out: the same scorer gives the same file everywhere."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)
