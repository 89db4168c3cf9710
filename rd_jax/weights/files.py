"""Files of weights as NumPy arrays: safetensors, npz, PyTorch's."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rd_jax.system.errors import UserError, first_line


def verified(path: Path, sha256: str, remedy: str) -> Path:
    """The path of a file with this hash. Raises UserError, which ends with `remedy`, of another."""
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise UserError(f"{path.resolve()} has sha256 {found}, expected {sha256}: {remedy}")
    return path


def read_file(path: Path) -> Mapping[str, np.ndarray]:
    """The tensors of a file, by its suffix. Raises UserError if it cannot be read."""
    if not path.is_file():
        raise UserError(
            f"teacher_weights {path} is not a file: give 'imagenet', 'embedded', 'random' or the "
            "path of a .safetensors, .npz or .pth file"
        )
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        with _reading(path, "a readable safetensors file"):
            return load_file(path)
    if path.suffix == ".npz":
        with _reading(path, "a readable npz file"), np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    if path.suffix == ".pth":
        return as_numpy(load_pth(path), path)
    raise UserError(f"teacher_weights {path}: give a .safetensors, .npz or .pth file")


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a broken file may raise anything
        raise UserError(f"{path} is not {what} ({first_line(error)})") from error


def load_pth(path: Path) -> Mapping[str, Any]:
    """What the file holds; it is never allowed to run code."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"reading {path} needs PyTorch: pip install torch") from error
    with _reading(path, "a state dict of tensors"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is then refused
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(loaded, Mapping):
            raise TypeError(type(loaded).__name__)
        return loaded


def as_numpy(state_dict: Mapping[str, Any], path: Path) -> Mapping[str, np.ndarray]:
    """PyTorch's tensors as arrays. Raises UserError for anything else, which `path` held."""
    with _reading(path, "a state dict of tensors"):
        return {name: tensor.detach().float().numpy() for name, tensor in state_dict.items()}
