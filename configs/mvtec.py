"""The paper's values (Deng and Li, CVPR 2022) for MVTec AD.

python -m rd_jax.main --config mvtec --config.data_dir=DIR --workdir runs/mvtec
python -m rd_jax.main --config mvtec:bottle --config.data_dir=DIR --workdir runs/mvtec
"""

from rd_jax.config import Config
from rd_jax.config import get_config as defaults


def get_config(category: str = "") -> Config:
    """Return the config of one category, or of all in data_dir."""
    return defaults(category=category)
