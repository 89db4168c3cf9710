"""Backbones that compile fast, known by name once this module is imported.

The processes that tests start import it, too, and take a short cut of conftest.py over by an
environment variable: XLA's own convolutions, which compile four times as fast as those for a CPU.
`python -m tests.tiny MODULE ...` is `python -m MODULE ...` with all of that.
"""

import os
import runpy
import sys

import flax.linen as nn
import jax

from rd_jax.method.models import BACKBONES, cpu
from rd_jax.method.models.blocks import BasicBlock, BottleneckBlock, Conv3x3
from rd_jax.method.models.teacher import Backbone

XLA_CONVOLUTIONS = "RD_JAX_TESTS_XLA_CONVOLUTIONS"


class PlainBlock(BasicBlock):
    """One convolution and no shortcut: of all that is traced and compiled less than a half."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.resized(x, Conv3x3, self.planes, "conv1")
        return nn.relu(self.norm(name="bn1")(y))


BACKBONES["tiny"] = Backbone(PlainBlock, (1, 1, 1, 1), planes=8)
BACKBONES["tiny10"] = Backbone(BasicBlock, (1, 1, 1, 1), planes=8)
BACKBONES["tiny50"] = Backbone(BottleneckBlock, (2, 1, 1, 1), base_width=128, planes=4)
BACKBONES["micro"] = Backbone(BasicBlock, (1, 1, 1, 1), planes=2)  # of the golden archive

if XLA_CONVOLUTIONS in os.environ:
    cpu._is_on_cpu = lambda: False
if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
