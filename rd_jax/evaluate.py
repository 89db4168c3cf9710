"""Scoring a test split and computing its metrics."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rd_jax.config import Config, compute_dtype, input_scaling
from rd_jax.errors import UserError
from rd_jax.metrics import IMAGE_METRICS, PIXEL_METRICS, auroc, image_metrics, pixel_metrics
from rd_jax.models import Reconstruction, Teacher
from rd_jax.models.bottleneck import join_variables
from rd_jax.models.resnet import select_scales
from rd_jax.score import anomaly_map, image_score

# What `make_scorer` reads of a config.
SCORER_FIELDS = [
    "backbone",
    "bottleneck",
    "scales",
    "normalize",
    "dtype",
    "blur_sigma",
    "image_score",
]
Scorer = Callable[[Any, Any, jax.Array], tuple[jax.Array, jax.Array]]


def make_scorer(config: Config) -> Scorer:
    """A jitted function (teacher_variables, student_variables, images) -> (maps, scores).

    `images` is uint8 [B, H, W, 3] with H = W, a multiple of 32; maps are float32 [B, H, W] and
    scores float32 [B] (paper, section 3.4). Each B compiles once: see `score_images`.
    """
    dtype = compute_dtype(config)
    teacher = Teacher(config.backbone, dtype)
    reconstruction = Reconstruction(config.backbone, config.bottleneck, dtype)

    # Read now: the function is traced later, and a config may have changed by then.
    scales, sigma, reduction = tuple(config.scales), config.blur_sigma, config.image_score
    kind, scaled = config.bottleneck, input_scaling(config)

    @jax.jit
    def scorer(
        teacher_variables: Any, student_variables: Any, images: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        teacher_features = teacher.apply(teacher_variables, scaled(images))
        variables = join_variables(kind, teacher_variables, student_variables)
        student_features = reconstruction.apply(variables, teacher_features)
        maps = anomaly_map(
            select_scales(teacher_features, scales),
            select_scales(student_features, scales),
            images.shape[1],
            sigma,
        )
        return maps, image_score(maps, reduction)

    return scorer


def score_images(
    scorer: Scorer,
    teacher_variables: Any,
    student_variables: Any,
    images: np.ndarray,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Maps [N, H, W] and scores [N] of uint8 images [N, H, W, 3], for any N, on all devices.

    Every batch has the same size, a multiple of the number of devices: the last one is padded,
    and the padding's results are dropped.
    """
    mesh = Mesh(np.array(jax.local_devices()), ("batch",))
    batch_size = math.ceil(batch_size / mesh.size) * mesh.size
    replicated = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("batch"))
    teacher_variables, student_variables = jax.device_put(
        (teacher_variables, student_variables), replicated
    )
    size = images.shape[1]
    all_maps = np.empty((len(images), size, size), np.float32)
    all_scores = np.empty(len(images), np.float32)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        count = len(batch)
        batch = np.pad(batch, ((0, batch_size - count), (0, 0), (0, 0), (0, 0)))
        maps, scores = scorer(teacher_variables, student_variables, jax.device_put(batch, split))
        all_maps[start : start + count] = np.asarray(maps)[:count]
        all_scores[start : start + count] = np.asarray(scores)[:count]
    return all_maps, all_scores


def evaluate(
    scorer: Scorer,
    teacher_variables: Any,
    student_variables: Any,
    images: np.ndarray,
    labels: np.ndarray,
    masks: np.ndarray | None,
    batch_size: int,
) -> dict[str, float | None]:
    """The seven metrics of a test split, as fractions; None where a metric is not defined.

    Image metrics are those of the scorer's scores; `image_auroc_sum` and `image_auroc_max` are
    AUROCs of the sum and of the maximum of each map.

    `images` is uint8 [N, H, W, 3], `labels` bool [N] (true: anomalous), `masks` bool [N, H, W].
    Raises UserError if a score is not finite.
    """
    metrics: dict[str, float] = {}
    if len(images):
        maps, scores = score_images(
            scorer, teacher_variables, student_variables, images, batch_size
        )
        if not np.isfinite(scores).all():
            raise UserError("scores are not finite: the training diverged; train anew elsewhere")
        metrics |= image_metrics(scores, labels)
        metrics["image_auroc_sum"] = float(auroc(maps.sum((1, 2)), labels))
        metrics["image_auroc_max"] = float(auroc(maps.max((1, 2)), labels))
        if masks is not None:
            metrics |= pixel_metrics(maps, masks)
    names = (*IMAGE_METRICS, *PIXEL_METRICS, "image_auroc_sum", "image_auroc_max")
    return {name: _defined(metrics.get(name)) for name in names}


def _defined(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
