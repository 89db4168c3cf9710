"""The distillation loss: cosine distance between teacher and student features."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from rd_jax.method.models import Features
from rd_jax.method.models.batch_norm import widened


def cosine_distance(a: jax.Array, b: jax.Array, axis: int = -1) -> jax.Array:
    """Return 1 - cos(a, b) along `axis`, in float32 or float64.

    Value and gradient are finite for zero vectors: each norm counts as at least 1e-8, as in
    torch.nn.functional.cosine_similarity.
    """
    a, b = widened(a), widened(b)
    inverse_a, inverse_b = (lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis), 1e-16)) for x in (a, b))
    return 1 - jnp.vecdot(a, b, axis=axis, precision="highest") * inverse_a * inverse_b


def cosine_distances(
    teacher_features: Features, student_features: Features
) -> tuple[jax.Array, ...]:
    """Return the cosine distance at each position of each scale given: [B, h, w], 0 to 2.

    Raises ValueError if the shapes differ, or if there are no features.
    """
    teacher, student = ([x.shape for x in f] for f in (teacher_features, student_features))
    if teacher != student or not teacher:
        raise ValueError(
            f"the teacher's features have the shapes {teacher} and the student's {student}: give "
            "both the same shapes, and at least one"
        )
    return tuple(map(cosine_distance, teacher_features, student_features))


def per_position_cosine_loss(teacher_features: Features, student_features: Features) -> jax.Array:
    """Return the paper's loss (equations 1 and 2) as a float32 scalar.

    It is the cosine distance at each position of [B, H, W, C], averaged over positions and images
    and summed over scales. To train on some scales only, pass only those.
    """
    distances = cosine_distances(teacher_features, student_features)
    return sum(map(jnp.mean, distances), start=jnp.float32(0))


def flattened_cosine_loss(teacher_features: Features, student_features: Features) -> jax.Array:
    """Return the loss of the authors' code as a float32 scalar.

    Each feature map is flattened to one vector of H*W*C values per image. The loss is the cosine
    distance of these vectors, averaged over images and summed over scales.
    """
    flattened = (
        tuple(f.reshape(f.shape[0], -1) for f in features)
        for features in (teacher_features, student_features)
    )
    return per_position_cosine_loss(*flattened)


def mixed_cosine_loss(teacher_features: Features, student_features: Features) -> jax.Array:
    """Return the mean of the per-position and the flattened loss as a float32 scalar."""
    features = (teacher_features, student_features)
    return (per_position_cosine_loss(*features) + flattened_cosine_loss(*features)) / 2


LossFunction = Callable[[Features, Features], jax.Array]
LOSSES: dict[str, LossFunction] = {
    "per_position": per_position_cosine_loss,
    "flattened": flattened_cosine_loss,
    "mixed": mixed_cosine_loss,
}
