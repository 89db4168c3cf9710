"""A generated category, small enough for a laptop's CPU.

python -m rd_jax.main --config demo --workdir runs/demo
"""

from rd_jax.config import SHORT, Config
from rd_jax.config import get_config as defaults


def get_config(category: str = "weave") -> Config:
    """The generated category "weave" and the teacher that comes along: nothing is downloaded."""
    return defaults(
        data_dir="synthetic",
        category=category,
        image_size=96,
        backbone="resnet10",
        teacher_weights="embedded",
        holdout=16,
        num_epochs=20,
        blur_sigma=2.0,  # the 4 pixels of 256 in proportion, rounded up
        checkpoint_every_epochs=0,
        **SHORT | {"batch_size": 8},  # of small images four are too few for BatchNorm
    )
