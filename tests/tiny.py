"""Backbones that compile fast, known by name once this module is imported."""

from rd_jax.models import BACKBONES
from rd_jax.models.layers import BasicBlock, BottleneckBlock
from rd_jax.models.resnet import Backbone

BACKBONES["tiny"] = Backbone(BasicBlock, (1, 1, 1, 1), planes=8)
BACKBONES["tiny50"] = Backbone(BottleneckBlock, (2, 1, 1, 1), base_width=128, planes=4)
