"""Train on your own parts. A folder of good images is enough; some of them set the thresholds.

python -m rd_jax.main --config folder:CATEGORY --config.data_dir=DIR --workdir runs/mine

reads DIR/CATEGORY/train/good/*, and test/ and ground_truth/ in MVTec AD layout if they exist.
"""

from rd_jax.config import OWN_PARTS, Config
from rd_jax.config import get_config as defaults


def get_config(category: str = "") -> Config:
    """Return a config with a hold-out, a small backbone and the short recipe of docs/recipe.md."""
    return defaults(category=category, **OWN_PARTS)
