"""Convert PyTorch's names and layouts to Flax variables."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from rd_jax.method.models import Reconstruction
from rd_jax.method.models.init import example_shapes, teacher_shapes, variable_shapes
from rd_jax.system.errors import UserError


def convert_teacher(
    state_dict: Mapping[str, np.ndarray], backbone: str, layer4: bool = False
) -> dict[str, Any]:
    """Convert a torchvision (or timm) state dict to the variables of `Teacher(backbone)`.

    Takes numpy arrays. Returns {'params', 'batch_stats'} of float32 arrays, with those of the
    fourth stage if `layer4`. Other tensors are ignored. Raises UserError, which lists the tensors
    that are missing, have another shape, or hold impossible values.
    """
    what = f"{backbone} with its fourth stage, for bottleneck 'pre'" if layer4 else backbone
    return _convert(_plain(state_dict), teacher_shapes(backbone, layer4), what)


def convert_rd4ad(
    bottleneck: Mapping[str, np.ndarray], student: Mapping[str, np.ndarray], backbone: str
) -> dict[str, Any]:
    """Convert the authors' two state dicts, "bn" and "decoder", to the student's variables.

    Takes numpy arrays. Returns {'params', 'batch_stats'}, each with 'bottleneck' and 'student',
    float32, for `make_scorer`. Tensors that the method does not use are ignored. Raises UserError
    as `convert_teacher` does.
    """
    _, features = example_shapes(backbone)
    both = {f"bottleneck.{name}": value for name, value in _plain(bottleneck).items()}
    both |= {f"student.{name}": value for name, value in _plain(student).items()}
    return _convert(both, variable_shapes(Reconstruction(backbone), features), backbone)


def _plain(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors without the `module.` that PyTorch's DataParallel puts before names."""
    return {name.removeprefix("module."): value for name, value in state_dict.items()}


_NAMES = dict(kernel="weight", scale="weight", bias="bias", mean="running_mean", var="running_var")


def torch_name(path: tuple[str, ...]) -> str:
    """Return 'layer1.0.conv1.weight' for ('params', 'layer1_0', 'conv1', 'kernel')."""
    modules = [re.sub(r"_(\d+)$", r".\1", module) for module in path[1:-1]]
    return ".".join([*modules, _NAMES[path[-1]]])


def _convert(state_dict: Mapping[str, np.ndarray], shapes: Any, what: str) -> dict[str, Any]:
    """Return the tensors that `shapes` asks for, and check them, whichever file held them."""
    converted: dict[tuple[str, ...], np.ndarray] = {}
    problems: dict[str, list[str]] = {}
    for path, expected in flatten_dict(shapes).items():
        name = torch_name(path)
        if name not in state_dict:
            problems.setdefault("missing", []).append(name)
            continue
        value = given = np.asarray(state_dict[name])
        if given.ndim == 4:
            # To (h, w, in, out); transposed kernels from (in, out, h, w) to (in, h, w, out).
            value = given.transpose((0, 2, 3, 1) if given.shape[2:] == (2, 2) else (2, 3, 1, 0))
        if not np.can_cast(given.dtype, np.float32, "same_kind"):
            problems.setdefault("not of real numbers", []).append(f"{name} {given.dtype}")
        elif value.shape != expected.shape:
            problems.setdefault("of another shape", []).append(f"{name} {given.shape}")
        elif not (np.abs(value) <= np.finfo(np.float32).max).all():
            problems.setdefault("not finite", []).append(name)
        elif path[-1] == "var" and value.min() < 0:
            problems.setdefault("negative", []).append(name)
        else:
            converted[path] = np.ascontiguousarray(value, np.float32)
    if problems:
        texts = (
            f"{kind}: {', '.join([*names[:8], *['...'] * (len(names) > 8)])} ({len(names)})"
            for kind, names in problems.items()
        )
        raise UserError(f"these weights do not fit {what}: {'; '.join(texts)}")
    return unflatten_dict(converted)
