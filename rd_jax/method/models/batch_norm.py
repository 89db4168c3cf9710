"""Batch normalisation: a derivative in two passes over memory, and folding for inference."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array, lax

Dtype = Any


class BatchNorm(nn.Module):
    """Batch normalisation over [B, H, W] as PyTorch's, statistics in float32 (or float64).

    flax.linen.BatchNorm keeps the biased variance as running statistic instead. The difference is
    visible where a batch has few positions (32x32 images: 1x1 embeddings). With `axis_name`
    the statistics are those of the whole batch over all devices of that mapped axis. If the
    variables are folded (see `fold_batch_norm`), it only adds the bias.
    """

    train: bool = False
    axis_name: str | None = None
    dtype: Dtype = jnp.float32
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1],)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        is_new = self.is_initializing()
        if not (self.train or is_new or self.has_variable("params", "scale")):
            # In the convolution's dtype, so that cuDNN fuses it with convolution, ReLU, shortcut.
            return x + bias.astype(x.dtype)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        shift, epsilon, axis_name = running_mean.value, self.epsilon, self.axis_name
        if is_new or not self.train:
            y = _affine(x, shift, running_var.value, scale, bias, epsilon)
            return y.astype(self.dtype)
        y, mean, var = _batch_normalized(x, scale, bias, shift, epsilon, axis_name)
        count = x.size // x.shape[-1] * (lax.axis_size(axis_name) if axis_name else 1)
        unbiased_var = var * (count / max(count - 1, 1))
        keep = self.momentum
        running_mean.value = keep * running_mean.value + (1 - keep) * mean
        running_var.value = keep * running_var.value + (1 - keep) * unbiased_var
        return y.astype(self.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _batch_normalized(
    x: Array, scale: Array, bias: Array, shift: Array, epsilon: float, axis_name: str | None
) -> tuple[Array, Array, Array]:
    """Return the normalised `x` [B, H, W, C], its mean [C] and its biased variance [C].

    The moments are computed about `shift` [C], which does not change the result. This takes one
    pass over x, and avoids the cancellation of E[x^2] - E[x]^2 where the mean is large.
    """
    centred = widened(x) - shift
    mean, square = _averages((centred, jnp.square(centred)), axis_name)
    var = jnp.maximum(square - jnp.square(mean), 0.0)
    mean = mean + shift
    return _affine(x, mean, var, scale, bias, epsilon), mean, var


@_batch_normalized.defjvp
def _batch_normalized_jvp(
    epsilon: float, axis_name: str | None, primals: Any, tangents: Any
) -> tuple[Any, Any]:
    """Return the derivative in a form whose backpropagation passes over memory twice.

    Terms that do not depend on the position are collected first. Backpropagation then needs one
    pass for two sums over positions, and one more pass for the gradient of x.
    """
    x, scale, _, _ = primals
    x_tangent, scale_tangent, bias_tangent, _ = tangents
    x_tangent = widened(x_tangent)
    _, mean, var = outputs = _batch_normalized(*primals, epsilon, axis_name)
    inverse = lax.rsqrt(var + epsilon)
    centred = widened(x) - mean
    mean_tangent, covariance = _averages((x_tangent, centred * x_tangent), axis_name)
    gain = inverse * scale
    y_tangent = (
        gain * x_tangent
        + centred * (inverse * (scale_tangent - gain * inverse * covariance))
        + (bias_tangent - gain * mean_tangent)
    )
    return outputs, (y_tangent, mean_tangent, 2 * covariance)


def _affine(x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    gain = lax.rsqrt(var + epsilon) * scale
    return widened(x) * gain + (bias - mean * gain)


def widened(x: Array) -> Array:
    """Return `x` as float32, unless it is float64."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _averages(values: Any, axis_name: str | None) -> Any:
    """Return means over [B, H, W], and over all devices of a mapped axis."""
    means = jax.tree.map(lambda x: jnp.mean(x, axis=(0, 1, 2)), values)
    return means if axis_name is None else lax.pmean(means, axis_name)


def fold_batch_norm(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Fold {'params', 'batch_stats'} into {'params'} for the same module with train=False.

    A channel's normalisation becomes a factor of the convolution's kernel and a bias.
    `BatchNorm` finds no scale then, and only adds its bias. Variables that are already folded stay
    as they are.
    """
    params = dict(flatten_dict(variables["params"]))
    statistics = flatten_dict(variables.get("batch_stats", {}))
    for *module, norm in {path[:-1] for path in statistics}:
        mean, var = (statistics[*module, norm, name] for name in ("mean", "var"))
        factor = params.pop((*module, norm, "scale")) / (var + BatchNorm.epsilon) ** 0.5
        params[*module, norm, "bias"] = params[*module, norm, "bias"] - mean * factor
        # bn1 follows conv1; downsample_1 and upsample_1 follow downsample_0 and upsample_0.
        kernel = (*module, norm.replace("bn", "conv").replace("_1", "_0"), "kernel")
        params[kernel] = params[kernel] * factor
    return {"params": unflatten_dict(params)}
