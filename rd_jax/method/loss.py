"""The distillation loss: cosine distance between teacher and student features."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from rd_jax.method.models import Features


def cosine_distance(a: jax.Array, b: jax.Array, axis: int = -1) -> jax.Array:
    """1 - cos(a, b) along `axis`, in float32 or float64.

    Value and gradient are finite for zero vectors: each norm is at least 1e-8, as in
    torch.nn.functional.cosine_similarity.
    """
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    a, b = a.astype(dtype), b.astype(dtype)
    inverse_a, inverse_b = (lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis), 1e-16)) for x in (a, b))
    return 1 - jnp.sum(a * b, axis) * inverse_a * inverse_b


def per_position_cosine_loss(teacher_features: Features, student_features: Features) -> jax.Array:
    """The paper's loss (equations 1 and 2) as a float32 scalar.

    Cosine distance at each position of [B, H, W, C], mean over positions and images, summed over
    the scales given. To train on some scales only, pass only those.
    """
    pairs = zip(teacher_features, student_features, strict=True)
    return sum((jnp.mean(cosine_distance(t, s)) for t, s in pairs), start=jnp.float32(0))


def flattened_cosine_loss(teacher_features: Features, student_features: Features) -> jax.Array:
    """The loss of the authors' code, as a float32 scalar.

    Cosine distance between whole feature maps, each flattened to one vector of H*W*C per image,
    mean over images, summed over the scales given.
    """
    flattened = (
        tuple(f.reshape(f.shape[0], -1) for f in features)
        for features in (teacher_features, student_features)
    )
    return per_position_cosine_loss(*flattened)


def mixed_cosine_loss(teacher_features: Features, student_features: Features) -> jax.Array:
    """The mean of the two others, as a float32 scalar."""
    features = (teacher_features, student_features)
    return (per_position_cosine_loss(*features) + flattened_cosine_loss(*features)) / 2


LossFunction = Callable[[Features, Features], jax.Array]
LOSSES: dict[str, LossFunction] = {
    "per_position": per_position_cosine_loss,
    "flattened": flattened_cosine_loss,
    "mixed": mixed_cosine_loss,
}
