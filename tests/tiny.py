"""Backbones that compile fast, known by name once this module is imported."""

import os

from rd_jax.method.models import BACKBONES, cpu
from rd_jax.method.models.blocks import BasicBlock, BottleneckBlock
from rd_jax.method.models.teacher import Backbone

XLA_CONVOLUTIONS = "RD_JAX_TESTS_XLA_CONVOLUTIONS"  # see conftest.py
if XLA_CONVOLUTIONS in os.environ:
    cpu._is_on_cpu = lambda: False

BACKBONES["tiny"] = Backbone(BasicBlock, (1, 1, 1, 1), planes=8)
BACKBONES["tiny50"] = Backbone(BottleneckBlock, (2, 1, 1, 1), base_width=128, planes=4)
BACKBONES["micro"] = Backbone(BasicBlock, (1, 1, 1, 1), planes=2)  # of the golden workdir
