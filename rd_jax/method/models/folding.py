"""Networks in inference form: BatchNorm folded into the convolutions before it."""

from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from rd_jax.method.models.batch_norm import BatchNorm


def fold_batch_norm(variables: Mapping[str, Any]) -> dict[str, Any]:
    """{'params', 'batch_stats'} -> {'params'}, float32, for the same module with train=False.

    What BatchNorm does to a channel becomes a factor of the convolution's kernel and a bias:
    `batch_norm.BatchNorm` only adds its bias where it finds no scale. Variables that are folded
    already stay as they are.
    """
    params = dict(flatten_dict(variables["params"]))
    statistics = flatten_dict(variables.get("batch_stats", {}))
    for *module, norm in {path[:-1] for path in statistics}:
        mean, var = (statistics[*module, norm, name] for name in ("mean", "var"))
        factor = params.pop((*module, norm, "scale")) / (var + BatchNorm.epsilon) ** 0.5
        params[*module, norm, "bias"] = params[*module, norm, "bias"] - mean * factor
        kernel_path = (*module, _convolution_before(norm), "kernel")
        params[kernel_path] = params[kernel_path] * factor
    return {"params": unflatten_dict(params)}


def _convolution_before(norm: str) -> str:
    """bn1 -> conv1, downsample_1 -> downsample_0, upsample_1 -> upsample_0."""
    return norm.replace("bn", "conv") if norm.startswith("bn") else norm.replace("_1", "_0")
