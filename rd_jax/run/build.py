"""From a config to what the method takes."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rd_jax.config import Config
from rd_jax.method.models import Model
from rd_jax.method.score import make_scorer


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
    )


def optimizer_of(config: Config) -> optax.GradientTransformation:
    """Adam with the config's rate and betas; the paper's have no schedule."""
    return optax.adam(config.learning_rate, config.adam_b1, config.adam_b2)


def scoring_of(config: Config) -> dict[str, Any]:
    """What `make_scorer` and exports take besides the model."""
    return {"sigma": config.blur_sigma, "reduction": config.image_score}


def scorer_of(config: Config) -> jax.stages.Wrapped:
    """`make_scorer`, the same and so compiled once for configs that score alike."""
    return _make_scorer(model_of(config), **scoring_of(config))


_make_scorer = cache(make_scorer)
