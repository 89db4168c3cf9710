"""Backbones that compile fast, known by name once this module is imported; and short cuts."""

import os
from types import SimpleNamespace

from rd_jax import report
from rd_jax.method.models import BACKBONES, cpu
from rd_jax.method.models.blocks import BasicBlock, BottleneckBlock
from rd_jax.method.models.teacher import Backbone

# Of the processes that tests start: see conftest.py.
XLA_CONVOLUTIONS, NO_FIGURES = "RD_JAX_TESTS_XLA_CONVOLUTIONS", "RD_JAX_TESTS_NO_FIGURES"
NONE_DRAWN = SimpleNamespace(draw=lambda *_: {}, write_figures=lambda *_: None)
if XLA_CONVOLUTIONS in os.environ:
    cpu._is_on_cpu = lambda: False
if NO_FIGURES in os.environ:
    report.figures = NONE_DRAWN

BACKBONES["tiny"] = Backbone(BasicBlock, (1, 1, 1, 1), planes=8)
BACKBONES["tiny50"] = Backbone(BottleneckBlock, (2, 1, 1, 1), base_width=128, planes=4)
BACKBONES["micro"] = Backbone(BasicBlock, (1, 1, 1, 1), planes=2)  # of the golden workdir
