"""MVTec AD by the short recipe of docs/recipe.md: the paper's figures in a fraction of its epochs.

python -m rd_jax.main --config mvtec_short --config.data_dir=DIR --workdir runs/short
python -m rd_jax.main --config mvtec_short:bottle --config.data_dir=DIR --workdir runs/short
"""

from rd_jax.config import SHORT, Config
from rd_jax.config import get_config as defaults


def get_config(category: str = "") -> Config:
    """Return the config of one category, or of all in data_dir."""
    return defaults(category=category, num_epochs=40, **SHORT)
