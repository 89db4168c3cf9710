"""The teacher that comes along: how it was made is in docs/embedded_teacher.md."""

from importlib.resources import files
from pathlib import Path

from rd_jax.system.errors import UserError
from rd_jax.weights.files import verified

BACKBONE = "resnet10"
SHA256 = "3d5c8860d7c03e04ba1af92ceee9dbdb9b61beffcce96e7a003791aaa05488c1"


def embedded(backbone: str, layer4: bool) -> Path:
    """The verified file. Raises UserError if it is damaged, or not of these networks."""
    if backbone != BACKBONE or layer4:
        raise UserError(
            f"the embedded teacher is a {BACKBONE} without its fourth stage: set "
            f"--config.backbone={BACKBONE} and a bottleneck other than 'pre', or other "
            "teacher_weights"
        )
    path = Path(str(files("rd_jax.weights") / f"{BACKBONE}.safetensors"))
    return verified(path, SHA256, "install rd_jax again")
