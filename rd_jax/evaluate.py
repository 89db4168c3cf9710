"""Scoring a test split and computing its metrics."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rd_jax import hosts
from rd_jax.config import Config, compute_dtype, input_scaling
from rd_jax.errors import UserError
from rd_jax.metrics import IMAGE_METRICS, PIXEL_METRICS, auroc, image_metrics, pixel_metrics
from rd_jax.models import Reconstruction, Teacher
from rd_jax.models.bottleneck import join_variables
from rd_jax.models.folding import fold_batch_norm
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
_SPLIT = PartitionSpec("batch")
Scorer = Callable[[Any, Any, jax.Array], tuple[jax.Array, jax.Array]]


def make_scorer(config: Config) -> jax.stages.Wrapped:
    """A jitted function (teacher_variables, student_variables, images) -> (maps, scores).

    `images` is uint8 [B, H, W, 3] with H = W, a multiple of 32; maps are float32 [B, H, W] and
    scores float32 [B] (paper, section 3.4). Variables may be in inference form: see
    `rd_jax.models.folding`. Each B compiles once: see `score_images`.
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


def compile_scorer(
    config: Config, teacher_variables: Any, student_variables: Any, num_images: int
) -> Scorer:
    """`make_scorer`, compiled for `score_images` with batches of `num_images`, to be used there.

    Of the variables {'params', 'batch_stats'} only the shapes count.
    """
    replicated, split, num_images = _placement(num_images)
    student_variables = jax.eval_shape(fold_batch_norm, student_variables)
    teacher_variables, student_variables = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
        (teacher_variables, student_variables),
    )
    shape = (num_images, config.image_size, config.image_size, 3)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=split)
    return make_scorer(config).lower(teacher_variables, student_variables, images).compile()


def _placement(batch_size: int) -> tuple[NamedSharding, NamedSharding, int]:
    """What is on all local devices, what is split over them, and a size that they divide."""
    mesh = Mesh(np.array(jax.local_devices()), ("batch",))
    replicated, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, _SPLIT)
    return replicated, split, math.ceil(batch_size / mesh.size) * mesh.size


def on_devices(teacher_variables: Any, student_variables: Any) -> tuple[Any, Any]:
    """Both on all local devices, the student's in inference form, as `score_batches` needs them."""
    replicated, _, _ = _placement(1)
    return jax.device_put((teacher_variables, fold_batch_norm(student_variables)), replicated)


def score_batches(
    scorer: Scorer,
    teacher_variables: Any,
    student_variables: Any,
    batches: Iterable[np.ndarray],
    batch_size: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Maps [b, H, W] and scores [b] of each batch of uint8 images [b, H, W, 3], on all devices.

    Every b is at most `batch_size`. What the devices compute has one size, a multiple of their
    number: batches are padded, and the padding's results are dropped. While one batch computes,
    the next one is fetched.
    """
    teacher_variables, student_variables = on_devices(teacher_variables, student_variables)
    _, split, batch_size = _placement(batch_size)
    waiting: tuple[int, tuple[jax.Array, jax.Array]] | None = None
    for batch in batches:
        padded = np.pad(batch, ((0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0)))
        outputs = scorer(teacher_variables, student_variables, jax.device_put(padded, split))
        if waiting is not None:
            yield _first(*waiting)
        waiting = (len(batch), outputs)
    if waiting is not None:
        yield _first(*waiting)


def _first(count: int, arrays: tuple[jax.Array, jax.Array]) -> tuple[np.ndarray, np.ndarray]:
    maps, scores = (np.asarray(array)[:count] for array in arrays)
    return maps, scores


def score_images(
    scorer: Scorer,
    teacher_variables: Any,
    student_variables: Any,
    images: np.ndarray,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Maps [N, H, W] and scores [N] of uint8 images [N, H, W, 3], for any N: `score_batches`.

    Of several processes, each scores a share of the images, and all get all of the results.
    Raises UserError if a score is not finite.
    """
    size, count = images.shape[1], len(images)
    images = images[hosts.share(count)]
    own_maps = np.empty((len(images), size, size), np.float32)
    own_scores = np.empty(len(images), np.float32)
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    scored = score_batches(scorer, teacher_variables, student_variables, batches, batch_size)
    start = 0
    for maps, scores in scored:
        own_maps[start : start + len(maps)] = maps
        own_scores[start : start + len(maps)] = scores
        start += len(maps)
    all_maps, all_scores = hosts.gathered(own_maps, count), hosts.gathered(own_scores, count)
    if not np.isfinite(all_scores).all():
        raise UserError("scores are not finite: the training diverged; train anew elsewhere")
    return all_maps, all_scores


def metrics_of(
    maps: np.ndarray, scores: np.ndarray, labels: np.ndarray, masks: np.ndarray | None
) -> dict[str, float | None]:
    """The seven metrics of a test split, as fractions; None where a metric is not defined.

    Image metrics are those of the scores; `image_auroc_sum` and `image_auroc_max` are AUROCs of
    the sum and of the maximum of each map.

    `maps` is float32 [N, H, W], `scores` float32 [N], `labels` bool [N] (true: anomalous),
    `masks` bool [N, H, W].
    """
    metrics: dict[str, float] = {}
    if len(maps):
        metrics |= image_metrics(scores, labels)
        metrics["image_auroc_sum"] = float(auroc(maps.sum((1, 2)), labels))
        metrics["image_auroc_max"] = float(auroc(maps.max((1, 2)), labels))
        if masks is not None:
            metrics |= pixel_metrics(maps, masks)
    names = (*IMAGE_METRICS, *PIXEL_METRICS, "image_auroc_sum", "image_auroc_max")
    return {name: _defined(metrics.get(name)) for name in names}


def metrics_at(
    threshold: float | None, scores: np.ndarray, labels: np.ndarray
) -> dict[str, float | None]:
    """Precision, recall and F1 of calling images with scores [N] above the threshold anomalous.

    None without a threshold, and where they are not defined: precision if no image is called
    anomalous, recall and F1 if none is (`labels` bool [N]).
    """
    names = ("image_precision", "image_recall", "image_f1")
    if threshold is None:
        return dict.fromkeys(names)
    called = scores > threshold
    hits, num_called, num_anomalous = (int(x.sum()) for x in (called & labels, called, labels))
    return dict(
        zip(
            names,
            (
                hits / num_called if num_called else None,
                hits / num_anomalous if num_anomalous else None,
                2 * hits / (num_called + num_anomalous) if num_anomalous else None,
            ),
            strict=True,
        )
    )


def evaluate(
    scorer: Scorer,
    teacher_variables: Any,
    student_variables: Any,
    images: np.ndarray,
    labels: np.ndarray,
    masks: np.ndarray | None,
    batch_size: int,
) -> dict[str, float | None]:
    """`metrics_of` the maps and scores of uint8 images [N, H, W, 3]."""
    maps, scores = score_images(scorer, teacher_variables, student_variables, images, batch_size)
    return metrics_of(maps, scores, labels, masks)


def _defined(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
