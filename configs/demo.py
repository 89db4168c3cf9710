"""A generated category, small enough for a laptop's CPU.

python -m rd_jax.main --config configs/demo.py --workdir runs/demo
"""

from ml_collections import ConfigDict


def get_config(category: str = "weave") -> ConfigDict:
    """The generated category "weave"; the teacher is ImageNet's if it can be had."""
    return ConfigDict(
        dict(
            data_dir="synthetic",
            category=category,
            dataset="",
            normal_class=-1,
            image_size=96,
            backbone="resnet18",
            teacher_weights="auto",
            normalize=True,
            bottleneck="mff_oce",
            scales=(1, 2, 3),
            loss="per_position",
            batch_size=8,
            num_epochs=60,
            learning_rate=0.005,
            adam_b1=0.9,  # steadier on so few images than the 0.5 of the paper
            adam_b2=0.999,
            seed=0,
            seeds=(),
            holdout=0.0,
            false_positive_rate=0.01,
            rd4ad_checkpoint="",
            dtype="auto",
            blur_sigma=2.0,  # the 4 pixels of 256 in proportion, rounded up
            image_score="max",
            log_every_steps=20,
            eval_every_epochs=0,
            checkpoint_every_epochs=0,
            tensorboard=False,
        )
    )
