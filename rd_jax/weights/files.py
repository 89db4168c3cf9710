"""Files of weights as NumPy arrays: safetensors, npz, PyTorch's."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rd_jax.system.errors import UserError, first_line


def read_file(path: Path) -> Mapping[str, np.ndarray]:
    """The tensors of a file, by its suffix. Raises UserError if it cannot be read."""
    if not path.is_file():
        raise UserError(
            f"teacher_weights {path} is not a file: give 'imagenet', 'random', 'auto' or the path "
            "of a .safetensors, .npz or .pth file"
        )
    readers = {".safetensors": read_safetensors, ".npz": _read_npz, ".pth": _read_pth}
    if path.suffix not in readers:
        raise UserError(f"teacher_weights {path}: give a .safetensors, .npz or .pth file")
    return readers[path.suffix](path)


def read_safetensors(path: Path) -> Mapping[str, np.ndarray]:
    """The tensors of a safetensors file. Raises UserError if it is none."""
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except Exception as error:  # a broken file may raise anything, here and below
        raise UserError(
            f"{path} is not a readable safetensors file ({first_line(error)})"
        ) from error


def _read_npz(path: Path) -> Mapping[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except Exception as error:
        raise UserError(f"{path} is not a readable npz file ({first_line(error)})") from error


def _read_pth(path: Path) -> Mapping[str, np.ndarray]:
    return as_numpy(load_pth(path), path)


def load_pth(path: Path) -> Mapping[str, Any]:
    """What the file holds; it is never allowed to run code."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"reading {path} needs PyTorch: pip install torch") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is then refused
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        problem = f"{path} is not a state dict of tensors ({first_line(error)})"
        raise UserError(problem) from error
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} is not a state dict of tensors")
    return loaded


def as_numpy(state_dict: Mapping[str, Any], path: Path) -> Mapping[str, np.ndarray]:
    """PyTorch's tensors as arrays. Raises UserError for anything else, which `path` held."""
    try:
        return {name: tensor.detach().float().numpy() for name, tensor in state_dict.items()}
    except (AttributeError, TypeError, RuntimeError) as error:
        problem = f"{path} is not a state dict of tensors ({first_line(error)})"
        raise UserError(problem) from error
