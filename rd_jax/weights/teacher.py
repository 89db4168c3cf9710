"""Load the teacher's variables, and those of the authors' checkpoints, from any file."""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from rd_jax.method.models.batch_norm import fold_batch_norm
from rd_jax.method.models.init import init_variables, teacher_shapes
from rd_jax.system.errors import UserError, first_line
from rd_jax.system.files import user_path
from rd_jax.weights import hub
from rd_jax.weights.convert import convert_rd4ad, convert_teacher

logger = logging.getLogger(__name__)


def load_teacher(backbone: str, weights: str = "imagenet", layer4: bool = False) -> dict[str, Any]:
    """Load the teacher's variables {'params', 'batch_stats'}, float32, for `Teacher(backbone)`.

    `weights` is "imagenet" (torchvision's IMAGENET1K_V1, downloaded once, verified, cached),
    "embedded" (a small ResNet-10 in this package, which imitates an ImageNet teacher), "random"
    (always the same) or a .safetensors, .npz or .pth file with torchvision's names. Only the stem
    and the first three stages are loaded. `layer4` adds the fourth, for bottleneck "pre". Raises
    UserError if the file cannot be found or read, or as `convert_teacher` does.
    """
    if weights == "random":
        logger.warning("the teacher %s is RANDOM: its scores are far below ImageNet's", backbone)
        shapes, key = teacher_shapes(backbone, layer4), jax.random.key(0, impl="threefry2x32")
        return init_variables(shapes, key)
    if weights == "embedded":
        logger.info("the teacher %s is the embedded one, which is for a first look", backbone)
    if weights == "imagenet":
        path = hub.download(backbone)
    else:
        path = hub.embedded(backbone, layer4) if weights == "embedded" else user_path(weights)
    return convert_teacher(_read_file(path), backbone, layer4)


class LoadedTeacher(NamedTuple):
    """A teacher's variables and where they came from."""

    weights: str  # "imagenet", "embedded", "random" or a file
    sha256: str
    variables: dict[str, Any]


def find_teacher(backbone: str, weights: str, layer4: bool = False) -> LoadedTeacher:
    """Load a teacher as `load_teacher`, on the device and in inference form, with its hash."""
    variables = load_teacher(backbone, weights, layer4)
    folded = jax.device_put(fold_batch_norm(variables))
    return LoadedTeacher(weights, teacher_sha256(variables), folded)


def teacher_sha256(variables: dict[str, Any]) -> str:
    """Return a hash of names and values. The same weights from any file have the same hash."""
    digest = hashlib.sha256()
    for path, value in sorted(flatten_dict(variables, sep="/").items()):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(value, np.float32).tobytes())
    return digest.hexdigest()


def load_rd4ad(path: Path, backbone: str) -> dict[str, Any]:
    """Load the student's variables from a .pth file of the authors' code: see `convert_rd4ad`."""
    state_dicts = _load_pth(path)
    missing = [key for key in ("bn", "decoder") if not isinstance(state_dicts.get(key), Mapping)]
    if missing:
        raise UserError(f"rd4ad_checkpoint {path} has no state dict {' and no '.join(missing)}")
    bottleneck, student = (_as_numpy(state_dicts[key], path) for key in ("bn", "decoder"))
    return convert_rd4ad(bottleneck, student, backbone)


def _read_file(path: Path) -> Mapping[str, np.ndarray]:
    """Return the tensors of a file by its suffix; raise UserError if it cannot be read."""
    if not path.is_file():
        raise UserError(
            f"teacher_weights {path} is not a file: give 'imagenet', 'embedded', 'random' or the "
            "path of a .safetensors, .npz or .pth file"
        )
    if path.suffix == ".pth":
        return _as_numpy(_load_pth(path), path)
    if path.suffix not in (".safetensors", ".npz"):
        raise UserError(f"teacher_weights {path}: give a .safetensors, .npz or .pth file")
    with _reading(path):
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file  # may be missing where nothing is read

            return load_file(path)
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn any error into a UserError that names the path: a broken file may raise any."""
    try:
        yield
    except Exception as error:
        is_tensors = path.suffix in (".safetensors", ".npz")
        what = f"readable {path.suffix[1:]} file" if is_tensors else "state dict of tensors"
        raise UserError(f"{path} is not a {what} ({first_line(error)})") from error


def _load_pth(path: Path) -> Mapping[str, Any]:
    """Load a file of PyTorch. The file is never allowed to run code."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"reading {path} needs PyTorch: pip install torch") from error
    with _reading(path):
        return dict(torch.load(path, map_location="cpu", weights_only=True))


def _as_numpy(state_dict: Mapping[str, Any], path: Path) -> Mapping[str, np.ndarray]:
    """Return PyTorch's tensors as arrays. Raise UserError for anything else that `path` held."""
    with _reading(path):  # NumPy lacks half of PyTorch's kinds of floats
        return {
            name: (tensor.float() if tensor.is_floating_point() else tensor).numpy(force=True)
            for name, tensor in state_dict.items()
        }
