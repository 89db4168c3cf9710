"""Export the scorer as one StableHLO file for CPU, GPU and TPU, which needs JAX, not rd_jax."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax

from rd_jax.method.models import Model
from rd_jax.method.score import Scoring, Size, height_and_width, make_scorer

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def to_stablehlo(
    model: Model,
    teacher_variables: Any,
    student_variables: Any,
    *,
    size: Size,
    scoring: Scoring = Scoring(),  # noqa: B008 (it is frozen)
    threshold: float | None = None,
) -> bytes:
    """Return the scorer in float32, with its variables, as a file for `jax.export.deserialize`.

    The file takes uint8 images [B, H, W, 3] of this `size`, any B, and returns a dict of "map"
    float32 [B, H, W], "score" float32 [B] and, with a threshold, "anomalous" bool [B]: the score is
    above it. JAX releases of at least the next six months read the file. Needs flatbuffers.
    """
    exact = dataclasses.replace(model, dtype=jnp.float32)
    scorer = make_scorer(exact, **dataclasses.asdict(scoring))
    variables = jax.device_get((teacher_variables, student_variables))

    def scored(images: jax.Array) -> dict[str, jax.Array]:
        # The barrier keeps XLA from computing with constants while it compiles.
        maps, scores = scorer(*lax.optimization_barrier(variables), images)
        outputs = {"map": maps, "score": scores}
        return outputs if threshold is None else outputs | {"anomalous": scores > threshold}

    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *height_and_width(size), 3), jnp.uint8)
    with _without_source_lines():
        exported = export.export(jax.jit(scored), platforms=PLATFORMS)(images)
        return bytes(exported.serialize())


@contextmanager
def _without_source_lines() -> Iterator[None]:
    """Keep this machine's paths out, so that a scorer gives the same file everywhere."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)
