"""Backbones that compile fast, known by name once this module is imported.

The processes that tests start import it too, and take the short cuts of conftest.py over by
environment variables: XLA's own convolutions, which compile four times as fast as those for a CPU,
and no figures.
"""

import os

from rd_jax.method.models import BACKBONES, cpu
from rd_jax.method.models.blocks import BasicBlock, BottleneckBlock
from rd_jax.method.models.teacher import Backbone
from rd_jax.report import figures

XLA_CONVOLUTIONS, NO_FIGURES = "RD_JAX_TESTS_XLA_CONVOLUTIONS", "RD_JAX_TESTS_NO_FIGURES"
WRITE_FIGURES = figures.write_figures

BACKBONES["tiny"] = Backbone(BasicBlock, (1, 1, 1, 1), planes=8)
BACKBONES["tiny50"] = Backbone(BottleneckBlock, (2, 1, 1, 1), base_width=128, planes=4)
BACKBONES["micro"] = Backbone(BasicBlock, (1, 1, 1, 1), planes=2)  # of the golden archive


def no_figures(*_: object) -> None:
    """In the place of `write_figures`."""


if XLA_CONVOLUTIONS in os.environ:
    cpu._is_on_cpu = lambda: False
if NO_FIGURES in os.environ:
    figures.write_figures = no_figures
