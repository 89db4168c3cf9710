"""Your own parts: a folder of good images is enough. A tenth of them sets the thresholds.

python -m rd_jax.main --config configs/folder.py:CATEGORY --config.data_dir=DIR --workdir runs/mine

reads DIR/CATEGORY/train/good/*, and if they are there test/ and ground_truth/ in MVTec AD layout.
"""

from ml_collections import ConfigDict

from configs import mvtec


def get_config(category: str = "") -> ConfigDict:
    """As for MVTec AD, with a hold-out and a backbone that trains on a laptop."""
    config = mvtec.get_config(category)
    config.update(backbone="resnet18", holdout=0.1, num_epochs=50)
    return config
