"""Read files of weights as NumPy arrays: safetensors, npz, PyTorch's."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rd_jax.system.errors import UserError, first_line


def verified(path: Path, sha256: str, remedy: str) -> Path:
    """Return the path; raise UserError, ending with `remedy`, if the file has another hash."""
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise UserError(f"{path.resolve()} has sha256 {found}, expected {sha256}: {remedy}")
    return path


def read_file(path: Path) -> Mapping[str, np.ndarray]:
    """Return the tensors of a file by its suffix; raise UserError if it cannot be read."""
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
    """Turn any error, since a broken file may raise any, into a UserError that names the path."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{path} is not {what} ({first_line(error)})") from error


def load_pth(path: Path) -> Mapping[str, Any]:
    """Return what a file of PyTorch holds; the file is never allowed to run code."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"reading {path} needs PyTorch: pip install torch") from error
    with _reading(path, "a state dict of tensors"):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(loaded, Mapping):
            raise TypeError(type(loaded).__name__)
        return loaded


def as_numpy(state_dict: Mapping[str, Any], path: Path) -> Mapping[str, np.ndarray]:
    """Return PyTorch's tensors as arrays; raise UserError for anything else that `path` held.

    Floating-point tensors become float32, which NumPy lacks half of PyTorch's kinds of. Others keep
    their kind, so that `convert_teacher` sees which are not of real numbers.
    """
    with _reading(path, "a state dict of tensors"):
        return {
            name: (tensor.float() if tensor.is_floating_point() else tensor).numpy(force=True)
            for name, tensor in state_dict.items()
        }
