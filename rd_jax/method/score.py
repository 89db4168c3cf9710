"""Anomaly maps and image scores (paper, equation 3)."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import ndimage

from rd_jax.method.checks import check_choice
from rd_jax.method.loss import cosine_distances
from rd_jax.method.models import Features, Model

Size = int | tuple[int, int]  # pixels: of a square, or (height, width)
Fusion = Literal["sum", "product"]
Reduction = Literal["max", "sum"]


@dataclass(frozen=True)
class Scoring:
    """The settings by which a trained model's distances become maps and scores.

    `sigma` is the width of the Gaussian blur in pixels; 0 means no blur. `reduction` turns a map
    into the image's score: see `image_score`. `fusion` joins scales to one map: see `anomaly_map`.
    """

    sigma: float = 4.0
    reduction: Reduction = "max"
    fusion: Fusion = "sum"

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not allowed."""
        check_choice("reduction", self.reduction, get_args(Reduction))
        check_choice("fusion", self.fusion, get_args(Fusion))
        if not 0 <= self.sigma < math.inf:
            raise ValueError(f"sigma={self.sigma}: must be a number of pixels, at least 0")


def height_and_width(size: Size) -> tuple[int, int]:
    """Return (height, width) in pixels."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def upsampling_matrix(size: int, length: int) -> np.ndarray:
    """Return [size, length]: PyTorch's linear interpolation with align_corners=True."""
    positions = np.linspace(0, length - 1, size)
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(length)))


def blur_matrix(size: int, sigma: float) -> np.ndarray:
    """Return [size, size]: a Gaussian blur, cut off at 4 `sigma`, that reflects at borders."""
    return ndimage.gaussian_filter(np.eye(size), (sigma, 0))


def anomaly_map(
    teacher_features: Features,
    student_features: Features,
    size: Size,
    sigma: float = 4.0,
    fusion: Fusion = "sum",
) -> jax.Array:
    """Return anomaly maps [B, H, W], float32, higher is more anomalous (paper, equation 3).

    Each scale gives a cosine distance at each position, 0 to 2. These are upsampled to the image's
    `size` H = W or (H, W), summed over scales, and blurred with a Gaussian of `sigma` pixels (0:
    no blur). `fusion` "product" multiplies the scales, an option of the authors' code: the map is
    then high only where all scales are. Raises ValueError for features of unequal shapes.
    """
    Scoring(sigma, fusion=fusion)  # raises for values that are not allowed
    distances = cosine_distances(teacher_features, student_features)
    lengths = height_and_width(size)
    blurs = [blur_matrix(length, sigma) for length in lengths]
    upsampling = [[*map(upsampling_matrix, lengths, x.shape[1:])] for x in distances]
    if fusion == "product":
        maps = [_resampled(x, *axes) for x, axes in zip(distances, upsampling, strict=True)]
        return _resampled(math.prod(maps, start=jnp.float32(1)), *blurs)
    # Upsampling and blur are both linear, so one product per axis does both.
    axes_of = [[b @ u for b, u in zip(blurs, axes, strict=True)] for axes in upsampling]
    maps = [_resampled(x, *axes) for x, axes in zip(distances, axes_of, strict=True)]
    return sum(maps, start=jnp.float32(0))


def _resampled(maps: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """Multiply maps [B, h, w] by [y, h] and [x, w]; return [B, y, x]."""
    y, x = (jnp.asarray(matrix, jnp.float32) for matrix in (rows, columns))
    return jnp.einsum("yh,bhw,xw->byx", y, maps, x, precision=lax.Precision.HIGHEST)


def image_score(maps: jax.Array, reduction: Reduction = "max") -> jax.Array:
    """Return each map's maximum (as in the paper) or its "sum": [B, H, W] -> [B]."""
    check_choice("reduction", reduction, get_args(Reduction))
    return jnp.max(maps, axis=(1, 2)) if reduction == "max" else jnp.sum(maps, axis=(1, 2))


def make_scorer(
    model: Model, sigma: float = 4.0, reduction: Reduction = "max", fusion: Fusion = "sum"
) -> jax.stages.Wrapped:
    """Return a jitted function (teacher_variables, student_variables, images) -> (maps, scores).

    `images` is uint8 [B, H, W, 3] with H and W multiples of 32; maps are float32 [B, H, W] and
    scores float32 [B] (paper, equation 3). Variables may be folded: see `fold_batch_norm` of
    `models.batch_norm`. A float32 model computes in full float32 on every device, also where GPUs
    and TPUs would round products by default. Each shape of images compiles once.
    """
    Scoring(sigma, reduction, fusion)  # raises for values that are not allowed
    is_exact = jnp.dtype(model.dtype) == jnp.float32

    @jax.jit
    def scorer(
        teacher_variables: Any, student_variables: Any, images: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        with jax.default_matmul_precision("highest") if is_exact else nullcontext():
            teacher_features = model.teacher_features(teacher_variables, images)
            student_features = model.student_features(
                teacher_variables, student_variables, images, teacher_features
            )
        features = model.select(teacher_features), model.select(student_features)
        _, height, width, _ = images.shape
        maps = anomaly_map(*features, (height, width), sigma, fusion)
        return maps, image_score(maps, reduction)

    return scorer
