"""ImageNet weights: find, verify, load."""

import hashlib
import logging
import os
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from rd_jax.config import Config
from rd_jax.convert import convert_rd4ad, convert_teacher
from rd_jax.errors import UserError
from rd_jax.models.folding import fold_batch_norm
from rd_jax.models.init import init_variables, teacher_shapes

logger = logging.getLogger(__name__)


class _HubFile(NamedTuple):
    """model.safetensors of a Hugging Face repository, torchvision's IMAGENET1K_V1, BSD-3."""

    repo: str
    revision: str
    sha256: str

    @property
    def url(self) -> str:
        return f"https://huggingface.co/{self.repo}/resolve/{self.revision}/model.safetensors"


_IMAGENET = {
    "resnet18": _HubFile(
        "timm/resnet18.tv_in1k",
        "bbd144b3e5565108aad885f145491d11bc6ce807",
        "694f673df6520a3158624e8a89af086f59923ee4cd7436fe5bc3bc71d295ad81",
    ),
    "resnet34": _HubFile(
        "timm/resnet34.tv_in1k",
        "1b7b21cca82ff974d341713f777bf740c2db38c4",
        "0bb82595a564991a9d424708b33f5d843f5aaed7f6c0886ff10849ff97022235",
    ),
    "resnet50": _HubFile(
        "timm/resnet50.tv_in1k",
        "78f3ecfdb38e06d9b8397f662e7ab8fee96026fa",
        "5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",
    ),
    "wide_resnet50_2": _HubFile(
        "timm/wide_resnet50_2.tv_in1k",
        "343c5fa59ca8a131e0cdf42144a641b36a0387c2",
        "df6fb6c4824769769de18e14088475fd6ee94236849aa4e5d8022ba9d9a9a16c",
    ),
}


def load_teacher(backbone: str, weights: str = "imagenet", layer4: bool = False) -> dict[str, Any]:
    """The teacher's variables {'params', 'batch_stats'}, float32, for `Teacher(backbone)`.

    `weights` is "imagenet" (torchvision's IMAGENET1K_V1, downloaded once, verified, cached),
    "random" (always the same), "auto" ("imagenet" where it is cached or can be reached, else
    "random") or a .safetensors, .npz or .pth file with torchvision's names. Only the stem and
    the first three stages are loaded; with `layer4` the fourth too, for bottleneck "pre". Raises
    UserError if the file cannot be had or read, or as `convert_teacher`.
    """
    weights = resolve_weights(backbone, weights)
    if weights == "random":
        logger.warning("the teacher %s is RANDOM: its scores are far below ImageNet's", backbone)
        return init_variables(teacher_shapes(backbone, layer4), jax.random.key(0))
    if weights == "imagenet":
        return convert_teacher(_read_safetensors(_download(backbone)), backbone, layer4)
    return convert_teacher(_read_file(Path(os.path.expanduser(weights))), backbone, layer4)


def resolve_weights(backbone: str, weights: str) -> str:
    """`weights` with "auto" replaced by what it stands for here and now."""
    if weights != "auto":
        return weights
    try:
        _download(backbone)
        return "imagenet"
    except UserError as error:
        logger.warning("teacher_weights='auto': %s", error)
        return "random"


class LoadedTeacher(NamedTuple):
    """A teacher's variables and where they came from."""

    weights: str  # "imagenet", "random" or a file
    sha256: str
    variables: dict[str, Any]


def find_teacher(backbone: str, weights: str, layer4: bool = False) -> LoadedTeacher:
    """`load_teacher`, with what "auto" came to and the hash of what was loaded.

    The variables are in inference form, and on the device, so that a run of many categories sends
    them once.
    """
    weights = resolve_weights(backbone, weights)
    variables = load_teacher(backbone, weights, layer4)
    folded = jax.device_put(fold_batch_norm(variables))
    return LoadedTeacher(weights, teacher_sha256(variables), folded)


def teacher_of(config: Config) -> LoadedTeacher:
    """The teacher that the config names, with the stages that its bottleneck needs."""
    return find_teacher(config.backbone, config.teacher_weights, layer4=config.bottleneck == "pre")


def teacher_sha256(variables: dict[str, Any]) -> str:
    """A hash of names and values: the same for the same weights, whatever file held them."""
    digest = hashlib.sha256()
    for path, value in sorted(flatten_dict(variables, sep="/").items()):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(value, np.float32).tobytes())
    return digest.hexdigest()


def _read_file(path: Path) -> Mapping[str, np.ndarray]:
    if not path.is_file():
        raise UserError(
            f"teacher_weights {path} is not a file: give 'imagenet', 'random', 'auto' or the path "
            "of a .safetensors, .npz or .pth file"
        )
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz, ".pth": _read_pth}
    if path.suffix not in readers:
        raise UserError(f"teacher_weights {path}: give a .safetensors, .npz or .pth file")
    return readers[path.suffix](path)


def _read_safetensors(path: Path) -> Mapping[str, np.ndarray]:
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except Exception as error:  # a broken file may raise anything, here and below
        raise UserError(
            f"{path} is not a readable safetensors file ({_first_line(error)})"
        ) from error


def _read_npz(path: Path) -> Mapping[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except Exception as error:
        raise UserError(f"{path} is not a readable npz file ({_first_line(error)})") from error


def load_rd4ad(path: Path, backbone: str) -> dict[str, Any]:
    """The student's variables in a .pth file of the authors' code, as `convert_rd4ad` gives them.

    Raises UserError if the file cannot be read or does not fit.
    """
    state_dicts = _load_pth(path)
    missing = [key for key in ("bn", "decoder") if not isinstance(state_dicts.get(key), Mapping)]
    if missing:
        raise UserError(f"rd4ad_checkpoint {path} has no state dict {' and no '.join(missing)}")
    bottleneck, student = (_as_numpy(state_dicts[key], path) for key in ("bn", "decoder"))
    return convert_rd4ad(bottleneck, student, backbone)


def _read_pth(path: Path) -> Mapping[str, np.ndarray]:
    return _as_numpy(_load_pth(path), path)


def _load_pth(path: Path) -> Mapping[str, Any]:
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
        reason = _first_line(error)
        raise UserError(f"{path} is not a state dict of tensors ({reason})") from error
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} is not a state dict of tensors")
    return loaded


def _as_numpy(state_dict: Mapping[str, Any], path: Path) -> Mapping[str, np.ndarray]:
    try:
        return {name: tensor.detach().float().numpy() for name, tensor in state_dict.items()}
    except (AttributeError, TypeError, RuntimeError) as error:
        reason = _first_line(error)
        raise UserError(f"{path} is not a state dict of tensors ({reason})") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _download(backbone: str) -> Path:
    """The verified safetensors file, from the Hugging Face cache or the network."""
    import huggingface_hub as hub

    pinned = _IMAGENET[backbone]
    download = partial(
        hub.hf_hub_download, pinned.repo, "model.safetensors", revision=pinned.revision
    )
    try:
        path = Path(download(local_files_only=True))
    except hub.errors.LocalEntryNotFoundError:
        try:
            # The download itself retries for half a minute where there is no network.
            url = hub.hf_hub_url(pinned.repo, "model.safetensors", revision=pinned.revision)
            hub.get_hf_file_metadata(url, timeout=5)
            path = Path(download())
        except Exception as error:  # the hub's HTTP client, and so its errors, vary by version
            raise UserError(
                f"cannot download the ImageNet weights of {backbone} "
                f"({_first_line(error)}): fetch {pinned.url} "
                "where there is a network and set --config.teacher_weights=FOLDER/model.safetensors"
            ) from error
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 != pinned.sha256:
        raise UserError(
            f"{path.resolve()} has sha256 {sha256}, expected {pinned.sha256}: delete that file "
            "and start again"
        )
    return path
