"""The bottleneck: multi-scale feature fusion and one-class embedding."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from rd_jax.method.checks import check_choice
from rd_jax.method.models.batch_norm import BatchNorm, Dtype
from rd_jax.method.models.blocks import Conv3x3
from rd_jax.method.models.teacher import BACKBONES, Features

Kind = Literal["pre", "oce", "mff_oce"]


class Bottleneck(nn.Module):
    """Multi-scale feature fusion (MFF) and one-class embedding (OCE; paper, figure 4).

    Maps the teacher's `Features` to the embedding [B, H/32, W/32, C] with C 512 for ResNet-10,
    -18 and -34 and 2048 for ResNet-50 and WideResNet-50. MFF brings the shallow features to the
    deepest scale with strided 3x3 convolutions and concatenates all. OCE is the backbone's fourth
    stage, trained from scratch. `kind` "oce" leaves MFF out and embeds only the deepest features.
    "pre", an ablation of the paper, embeds them with the teacher's own fourth stage, pretrained and
    frozen: see `join_variables`. `train` uses the batch's statistics in BatchNorm and updates the
    collection `batch_stats`.
    """

    backbone: str
    kind: Kind = "mff_oce"
    dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: Features, train: bool = False) -> jax.Array:
        check_choice("kind", self.kind, get_args(Kind))
        backbone = BACKBONES[self.backbone]
        channels = features[0].shape[-1]
        norm = partial(BatchNorm, train=train, axis_name=self.axis_name, dtype=self.dtype)

        def halve(x: jax.Array, features: int, i: int) -> jax.Array:
            x = Conv3x3(features, strides=2, dtype=self.dtype, name=f"conv{i}")(x)
            return nn.relu(norm(name=f"bn{i}")(x))

        shallow, middle, fused = (x.astype(self.dtype) for x in features)
        if self.kind == "mff_oce":
            shallow = halve(halve(shallow, 2 * channels, 1), 4 * channels, 2)
            middle = halve(middle, 4 * channels, 3)
            fused = jnp.concatenate([shallow, middle, fused], axis=-1)
        name, train = ("layer4", False) if self.kind == "pre" else ("bn_layer", train)
        norm = partial(norm, train=train)
        num_blocks = backbone.stage_sizes[3]
        return backbone.stage(name, 8, num_blocks, "down", norm, self.dtype)(fused)


def join_variables(
    kind: Kind, teacher_variables: Mapping[str, Any], student_variables: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the variables of `Reconstruction`. "pre" takes the teacher's fourth stage."""
    if kind != "pre":
        return student_variables
    joined = dict(student_variables)
    for collection, tree in teacher_variables.items():
        stage = {name: v for name, v in tree.items() if name.startswith("layer4_")}
        joined[collection] = {"bottleneck": stage, **joined.get(collection, {})}
    return joined
