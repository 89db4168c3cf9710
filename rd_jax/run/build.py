"""From a config to what the method takes."""

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rd_jax.config import Config, size_of
from rd_jax.method.models import Model
from rd_jax.method.score import make_distances, make_maps
from rd_jax.run.scoring import Scorer


def compute_dtype(config: Config) -> jnp.dtype:
    """The networks' dtype of computation; "auto" is float32 on CPU, else bfloat16."""
    auto = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(auto if config.dtype == "auto" else config.dtype)


def model_of(config: Config) -> Model:
    """The networks."""
    return Model(
        config.backbone,
        config.bottleneck,
        tuple(config.scales),
        config.normalize,
        compute_dtype(config),
        config.direction,
    )


def optimizer_of(config: Config) -> optax.GradientTransformation:
    """Adam with the config's rate and betas; the paper's have no schedule."""
    return optax.adam(config.learning_rate, config.adam_b1, config.adam_b2)


def scoring_of(config: Config) -> dict[str, Any]:
    """What maps and exports take besides the model."""
    return {
        "sigma": config.blur_sigma,
        "reduction": config.image_score,
        "fusion": config.map_fusion,
    }


def scorer_of(config: Config, dtype: str | None = None) -> Scorer:
    """Distances, then maps and scores; the same and so compiled once for configs that score alike.

    In `dtype` or, by default, the config's.
    """
    model = dataclasses.replace(model_of(config), dtype=jnp.dtype(dtype or compute_dtype(config)))
    maps = _make_maps(size_of(config), **scoring_of(config))
    return Scorer(_make_distances(model), maps)


_make_distances = cache(make_distances)
_make_maps = cache(make_maps)
