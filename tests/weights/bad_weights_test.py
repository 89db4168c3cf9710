"""Files of weights that do not fit, hold none or hold code: each gets one line that names them."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rd_jax import load_teacher
from rd_jax.weights.teacher import load_rd4ad
from tests.data.refused import refused
from tests.reference_weights import state_dict_of


def content(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data)


@pytest.fixture(scope="module")
def state_dict() -> dict[str, np.ndarray]:
    """Random weights of the tiny backbone in PyTorch's names and layouts."""
    return state_dict_of(load_teacher("tiny10", "random"))


TENSORS = {
    "none at all": (lambda w: w.clear(), ", ... (45)"),
    "missing": (lambda w: w.pop("bn1.weight"), "missing: bn1.weight (1)"),
    "another shape": (
        lambda w: w.update({"conv1.weight": np.zeros((64, 1, 7, 7), np.float32)}),
        "of another shape: conv1.weight (64, 1, 7, 7) (1)",
    ),
    "not a number": (lambda w: w["bn1.weight"].fill(np.nan), "not finite: bn1.weight (1)"),
    "beyond float32": (
        lambda w: w.update({"bn1.bias": np.full_like(w["bn1.bias"], 1e300, np.float64)}),
        "not finite: bn1.bias (1)",
    ),
    "negative variance": (lambda w: w["bn1.running_var"].fill(-1), "negative: bn1.running_var (1)"),
    "complex": (
        lambda w: w.update({"bn1.bias": w["bn1.bias"] + 1j}),
        "not of real numbers: bn1.bias complex64 (1)",
    ),
    "text": (
        lambda w: w.update({"bn1.bias": np.array(["a"] * w["bn1.bias"].size)}),
        "not of real numbers: bn1.bias <U1 (1)",
    ),
}


@pytest.mark.parametrize("row", TENSORS)
def test_weights_that_do_not_fit_are_refused_with_their_names(
    tmp_path: Path, state_dict: dict[str, np.ndarray], row: str
) -> None:
    path = tmp_path / "w.npz"
    np.savez(path, **state_dict)
    load_teacher("tiny10", str(path))
    change, message = TENSORS[row]
    broken = {name: value.copy() for name, value in state_dict.items()}
    change(broken)
    np.savez(path, **broken)
    refused(message, load_teacher, "tiny10", str(path))


class Payload:
    """Pickled, it makes a file where it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def safetensors_of(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def bytes_of_array(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz_of_a_lie(path: Path) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**15,)}
    with zipfile.ZipFile(path, "w") as archive, archive.open("conv1.weight.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, header)


def tensor_of(shape: list[int], offsets: list[int]) -> dict[str, Any]:
    return {"conv1.weight": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}


WEIGHT_FILES = {
    "absent": ("w.npz", lambda _: None, "is not a file: give 'imagenet', 'embedded'"),
    "a folder": ("w.npz", Path.mkdir, "is not a file: give 'imagenet', 'embedded'"),
    "another suffix": ("w.bin", content(b"?"), ": give a .safetensors, .npz or .pth file"),
    "empty safetensors": ("w.safetensors", content(b""), "is not a readable safetensors file"),
    "safetensors longer than the file": (
        "w.safetensors",
        content(safetensors_of(tensor_of([1000], [0, 4000]), bytes(8))),
        "is not a readable safetensors file (",
    ),
    "safetensors of another length than the shape's": (
        "w.safetensors",
        content(safetensors_of(tensor_of([1000], [0, 8]), bytes(8))),
        "is not a readable safetensors file (",
    ),
    "safetensors with an endless header": (
        "w.safetensors",
        content(struct.pack("<Q", 2**62) + b"{}"),
        "is not a readable safetensors file (",
    ),
    "empty npz": ("w.npz", content(b""), "is not a readable npz file (No data left in file)"),
    "one array as npz": (
        "w.npz",
        content(bytes_of_array(np.eye(3))),
        "is not a readable npz file (",
    ),
    "npz larger than memory": ("w.npz", npz_of_a_lie, "is not a readable npz file ("),
    "empty pth": ("w.pth", content(b""), "is not a state dict of tensors ("),
    "text as pth": ("w.pth", content(b"weights"), "is not a state dict of tensors ("),
}


@pytest.mark.parametrize("row", WEIGHT_FILES)
def test_a_file_that_holds_no_weights_is_named(tmp_path: Path, row: str) -> None:
    name, make, message = WEIGHT_FILES[row]
    if name.endswith(".pth"):
        pytest.importorskip("torch", reason="the extra `parity` is not installed")
    make(tmp_path / name)
    line = refused(message, load_teacher, "tiny10", str(tmp_path / name))
    assert str(tmp_path / name) in line


@pytest.mark.parametrize("form", ["npz", "array.npz", "pth", "old.pth", "rd4ad.pth"])
def test_code_in_a_file_of_weights_is_never_run(tmp_path: Path, form: str) -> None:
    marker, path = tmp_path / "was run", tmp_path / f"w.{form}"
    pickle.loads(pickle.dumps(Payload(marker)))
    marker.unlink()  # the payload works
    load: Callable[[], Any] = partial(load_teacher, "tiny10", str(path))
    if form == "array.npz":
        np.savez(path, **{"conv1.weight": np.array([Payload(marker)], object)})
    elif form in ("npz", "old.pth"):
        path.write_bytes(pickle.dumps({"conv1.weight": Payload(marker)}))
    if path.suffix == ".pth":
        torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
        if form != "old.pth":
            torch.save({"bn": {}, "decoder": Payload(marker)}, path)
        if form == "rd4ad.pth":
            load = partial(load_rd4ad, path, "tiny10")
    refused(str(path), load)
    assert not marker.exists()


def test_tensors_of_a_pth_file_may_need_gradients_but_must_be_dense(
    tmp_path: Path, state_dict: dict[str, np.ndarray]
) -> None:
    torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
    path = tmp_path / "w.pth"
    tensors = {n: torch.nn.Parameter(torch.from_numpy(a.copy())) for n, a in state_dict.items()}
    torch.save(tensors, path)
    load_teacher("tiny10", str(path))
    for value in ({"weight": tensors}, 3, torch.eye(3).to_sparse()):
        torch.save({"bn1.weight": value}, path)
        refused("is not a state dict of tensors (", load_teacher, "tiny10", str(path))


def test_safetensors_of_half_precision_are_read(
    tmp_path: Path, state_dict: dict[str, np.ndarray]
) -> None:
    halved = {name: value.astype(np.float16) for name, value in state_dict.items()}
    save_file(halved, tmp_path / "w.safetensors")
    loaded = load_teacher("tiny10", str(tmp_path / "w.safetensors"))
    np.testing.assert_array_equal(loaded["params"]["bn1"]["scale"], halved["bn1.weight"])
