"""Your own parts: a folder of good images is enough. Some of them set the thresholds.

python -m rd_jax.main --config folder:CATEGORY --config.data_dir=DIR --workdir runs/mine

reads DIR/CATEGORY/train/good/*, and if they are there test/ and ground_truth/ in MVTec AD layout.
"""

from rd_jax.config import OWN_PARTS, Config
from rd_jax.config import get_config as defaults


def get_config(category: str = "") -> Config:
    """A hold-out, a backbone that trains on a laptop, and the short recipe of docs/recipe.md."""
    return defaults(category=category, **OWN_PARTS)
