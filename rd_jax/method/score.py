"""Anomaly maps and image scores (paper, equation 3)."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rd_jax.method.loss import cosine_distance
from rd_jax.method.models import Features, Model
from rd_jax.method.size import Size, height_and_width, inside

Fusion = Literal["sum", "product"]


def upsampling_matrix(size: int, length: int) -> np.ndarray:
    """[size, length]: linear interpolation along one axis, PyTorch's align_corners=True."""
    positions = np.linspace(0, length - 1, size)
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(length)))


def blur_matrix(size: int, sigma: float) -> np.ndarray:
    """[size, size]: scipy.ndimage.gaussian_filter1d(sigma, mode="reflect", truncate=4)."""
    if sigma == 0:
        return np.eye(size)
    radius = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * np.square(np.arange(-radius, radius + 1) / sigma))
    padded = np.pad(np.eye(size), ((radius, radius), (0, 0)), mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis=0)
    return windows @ (weights / weights.sum())


def distance_maps(teacher_features: Features, student_features: Features) -> tuple[jax.Array, ...]:
    """The cosine distance at each position of each scale given: [B, h, w] float32, 0 to 2."""
    pairs = zip(teacher_features, student_features, strict=True)
    return tuple(cosine_distance(t, s) for t, s in pairs)


def fused_map(
    distances: Sequence[jax.Array], size: Size, sigma: float = 4.0, fusion: str = "sum"
) -> jax.Array:
    """Anomaly maps [B, H, W], float32, of `distance_maps` (paper, equation 3).

    Bilinearly upsampled to the image's `size`, H = W or (H, W), summed over scales, blurred with a
    Gaussian of `sigma` pixels (0: not blurred). With `fusion` "product" they are multiplied
    instead, as the authors' code can: high only where all scales are.
    """
    if fusion not in get_args(Fusion):
        raise ValueError(f"fusion={fusion!r}: must be one of {get_args(Fusion)}")
    lengths = height_and_width(size)
    blurs = [blur_matrix(length, sigma) for length in lengths]
    upsampling = [[*map(upsampling_matrix, lengths, x.shape[1:])] for x in distances]
    if fusion == "product":
        maps = [_resampled(x, *axes) for x, axes in zip(distances, upsampling, strict=True)]
        return _resampled(math.prod(maps, start=jnp.float32(1)), *blurs)
    # Both are linear, so upsampling and blur are one product per axis.
    axes_of = [[b @ u for b, u in zip(blurs, axes, strict=True)] for axes in upsampling]
    maps = [_resampled(x, *axes) for x, axes in zip(distances, axes_of, strict=True)]
    return sum(maps, start=jnp.float32(0))


def _resampled(maps: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """[B, h, w] by [y, h] and [x, w] -> [B, y, x]."""
    y, x = (jnp.asarray(matrix, jnp.float32) for matrix in (rows, columns))
    return jnp.einsum("yh,bhw,xw->byx", y, maps, x, precision=lax.Precision.HIGHEST)


def anomaly_map(
    teacher_features: Features,
    student_features: Features,
    size: Size,
    sigma: float = 4.0,
    fusion: str = "sum",
) -> jax.Array:
    """Anomaly maps [B, H, W], float32, higher is more anomalous (paper, equation 3).

    `size` is H = W or (H, W). `fused_map` of the `distance_maps`: each scale contributes 0 to 2.
    """
    return fused_map(distance_maps(teacher_features, student_features), size, sigma, fusion)


def image_score(maps: jax.Array, reduction: str = "max") -> jax.Array:
    """One score per map: [B, H, W] -> [B]; the maximum (the paper's) or the "sum"."""
    if reduction not in ("max", "sum"):
        raise ValueError(f"reduction={reduction!r}: must be 'max' or 'sum'")
    return jnp.max(maps, axis=(1, 2)) if reduction == "max" else jnp.sum(maps, axis=(1, 2))


def make_distances(model: Model) -> jax.stages.Wrapped:
    """A jitted function (teacher_variables, student_variables, images) -> `distance_maps`.

    `images` is uint8 [B, H, W, 3] with H and W multiples of 32. Variables may be in inference
    form: see `models.batch_norm`. A model of float32 computes in float32 on every device, not in
    what GPUs and TPUs round it to by default. Each shape of images compiles once.
    """

    @jax.jit
    def distances(
        teacher_variables: Any, student_variables: Any, images: jax.Array
    ) -> tuple[jax.Array, ...]:
        is_exact = jnp.dtype(model.dtype) == jnp.float32
        with jax.default_matmul_precision("highest") if is_exact else nullcontext():
            teacher_features = model.teacher_features(teacher_variables, images)
            student_features = model.student_features(
                teacher_variables, student_variables, images, teacher_features
            )
        return distance_maps(model.select(teacher_features), model.select(student_features))

    return distances


def make_maps(
    size: Size, sigma: float = 4.0, reduction: str = "max", fusion: str = "sum"
) -> jax.stages.Wrapped:
    """A jitted function (distances, regions) -> (maps, scores): `fused_map`, its `image_score`.

    With regions, int [B, 4] as of `size.Region`, maps are 0 outside of them.
    """

    @jax.jit
    def maps_and_scores(
        distances: Sequence[jax.Array], regions: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        maps = fused_map(distances, size, sigma, fusion)
        if regions is not None:
            maps = jnp.where(inside(regions, height_and_width(size)), maps, 0)
        return maps, image_score(maps, reduction)

    return maps_and_scores


def make_scorer(
    model: Model, sigma: float = 4.0, reduction: str = "max", fusion: str = "sum"
) -> jax.stages.Wrapped:
    """A jitted function (teacher_variables, student_variables, images) -> (maps, scores).

    `images` is uint8 [B, H, W, 3] with H and W multiples of 32; maps are float32 [B, H, W] and
    scores float32 [B] (paper, equation 3). It is `make_distances`, then `make_maps`.
    """
    distances = make_distances(model)

    @jax.jit
    def scorer(
        teacher_variables: Any, student_variables: Any, images: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        _, height, width, _ = images.shape
        finish = make_maps((height, width), sigma, reduction, fusion)
        return finish(distances(teacher_variables, student_variables, images))

    return scorer
