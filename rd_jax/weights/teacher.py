"""Load the teacher's variables, and those of the authors' checkpoints."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from rd_jax.method.models.batch_norm import fold_batch_norm
from rd_jax.method.models.init import init_variables, teacher_shapes
from rd_jax.system.errors import UserError
from rd_jax.system.files import user_path
from rd_jax.weights import hub
from rd_jax.weights.convert import convert_rd4ad, convert_teacher
from rd_jax.weights.files import as_numpy, load_pth, read_file

logger = logging.getLogger(__name__)


def load_teacher(backbone: str, weights: str = "imagenet", layer4: bool = False) -> dict[str, Any]:
    """Load the teacher's variables {'params', 'batch_stats'}, float32, for `Teacher(backbone)`.

    `weights` is "imagenet" (torchvision's IMAGENET1K_V1, downloaded once, verified, cached),
    "embedded" (a ResNet-10 in this package, which imitates one of ImageNet), "random" (always the
    same) or a .safetensors, .npz or .pth file with torchvision's names. Only the stem and the
    first three stages are loaded; with `layer4` the fourth too, for bottleneck "pre". Raises
    UserError if the file cannot be had or read, or as `convert_teacher`.
    """
    if weights == "random":
        logger.warning("the teacher %s is RANDOM: its scores are far below ImageNet's", backbone)
        return init_variables(
            teacher_shapes(backbone, layer4), jax.random.key(0, impl="threefry2x32")
        )
    if weights == "imagenet":
        path = hub.download(backbone)
    else:
        path = hub.embedded(backbone, layer4) if weights == "embedded" else user_path(weights)
    return convert_teacher(read_file(path), backbone, layer4)


class LoadedTeacher(NamedTuple):
    """Hold a teacher's variables and where they came from."""

    weights: str  # "imagenet", "embedded", "random" or a file
    sha256: str
    variables: dict[str, Any]


def find_teacher(backbone: str, weights: str, layer4: bool = False) -> LoadedTeacher:
    """Load a teacher as `load_teacher`, with the hash of what was loaded.

    The variables are in inference form, and on the device, so that a run of many categories sends
    them once.
    """
    variables = load_teacher(backbone, weights, layer4)
    folded = jax.device_put(fold_batch_norm(variables))
    return LoadedTeacher(weights, teacher_sha256(variables), folded)


def teacher_sha256(variables: dict[str, Any]) -> str:
    """Return a hash of names and values: the same for the same weights, whatever file held them."""
    digest = hashlib.sha256()
    for path, value in sorted(flatten_dict(variables, sep="/").items()):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(value, np.float32).tobytes())
    return digest.hexdigest()


def load_rd4ad(path: Path, backbone: str) -> dict[str, Any]:
    """Load the student's variables from a .pth file of the authors' code: see `convert_rd4ad`.

    Raises UserError if the file cannot be read or does not fit.
    """
    state_dicts = load_pth(path)
    missing = [key for key in ("bn", "decoder") if not isinstance(state_dicts.get(key), Mapping)]
    if missing:
        raise UserError(f"rd4ad_checkpoint {path} has no state dict {' and no '.join(missing)}")
    bottleneck, student = (as_numpy(state_dicts[key], path) for key in ("bn", "decoder"))
    return convert_rd4ad(bottleneck, student, backbone)
