"""A generated category, small enough for a laptop's CPU.

python -m rd_jax.main --config demo --workdir runs/demo
"""

from rd_jax.config import SHORT, Config
from rd_jax.config import get_config as defaults


def get_config(category: str = "weave") -> Config:
    """Return the config of the generated category and the embedded teacher: no downloads."""
    return defaults(
        data_dir="synthetic",
        category=category,
        image_size=96,
        backbone="resnet10",
        teacher_weights="embedded",
        holdout=16,
        num_epochs=15,
        blur_sigma=2.0,  # 4 pixels at 256, in proportion, rounded up
        checkpoint_every_epochs=0,
        **SHORT | {"batch_size": 8},  # four small images are too few for BatchNorm
    )
