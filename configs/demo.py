"""A generated category, small enough for a laptop's CPU.

python -m rd_jax.main --config demo --workdir runs/demo
"""

from rd_jax.config import SHORT, Config
from rd_jax.config import get_config as defaults


def get_config(category: str = "weave") -> Config:
    """The generated category "weave"; the teacher is ImageNet's if it can be had."""
    return defaults(
        data_dir="synthetic",
        category=category,
        image_size=96,
        backbone="resnet18",
        teacher_weights="auto",
        num_epochs=30,
        blur_sigma=2.0,  # the 4 pixels of 256 in proportion, rounded up
        checkpoint_every_epochs=0,
        **SHORT,
    )
