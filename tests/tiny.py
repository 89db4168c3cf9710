"""Backbones that compile fast, known by name once this module is imported."""

from rd_jax.method.models import BACKBONES
from rd_jax.method.models.blocks import BasicBlock, BottleneckBlock
from rd_jax.method.models.teacher import Backbone

BACKBONES["tiny"] = Backbone(BasicBlock, (1, 1, 1, 1), planes=8)
BACKBONES["tiny50"] = Backbone(BottleneckBlock, (2, 1, 1, 1), base_width=128, planes=4)
BACKBONES["micro"] = Backbone(BasicBlock, (1, 1, 1, 1), planes=2)  # of the golden workdir
