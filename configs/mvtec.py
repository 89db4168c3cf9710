"""The paper's values (Deng and Li, CVPR 2022, section 4.1) for MVTec AD.

python -m rd_jax.main --config configs/mvtec.py --config.data_dir=DIR --workdir runs/mvtec
python -m rd_jax.main --config configs/mvtec.py:bottle --config.data_dir=DIR --workdir runs/mvtec
"""

from ml_collections import ConfigDict


def get_config(category: str = "") -> ConfigDict:
    """One category, or all that data_dir holds."""
    return ConfigDict(
        dict(
            data_dir="data/mvtec",
            category=category,
            dataset="",
            normal_class=-1,
            image_size=256,
            backbone="wide_resnet50_2",
            teacher_weights="imagenet",
            normalize=True,
            bottleneck="mff_oce",
            scales=(1, 2, 3),
            loss="per_position",
            batch_size=16,
            num_epochs=200,
            learning_rate=0.005,
            adam_b1=0.5,
            adam_b2=0.999,
            seed=0,
            seeds=(),
            holdout=0.0,
            false_positive_rate=0.01,
            rd4ad_checkpoint="",
            dtype="auto",
            blur_sigma=4.0,
            image_score="max",
            log_every_steps=20,
            eval_every_epochs=0,
            checkpoint_every_epochs=20,
            tensorboard=False,
        )
    )
