"""A machine that has only what the method needs, and PyTorch: other packages cannot be imported."""

from pathlib import Path

# Not absl, etils and what else optax, flax and orbax bring along.
MISSING = (
    *("array_record", "filelock", "flatbuffers", "huggingface_hub", "importlib_resources"),
    *("jinja2", "matplotlib", "ml_collections", "onnx", "safetensors", "tensorboardX"),
    *("tensorflow_datasets", "tqdm"),
)
_FINDER = f"""
import sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in {MISSING}:
            return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""


def bare_machine(folder: Path) -> dict[str, str]:
    """The environment of processes on such a machine, by a file in `folder`."""
    (folder / "sitecustomize.py").write_text(_FINDER)
    return {"PYTHONPATH": str(folder)}
