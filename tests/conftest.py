"""Four simulated devices, a private cache, no network, and a backbone that compiles fast."""

import os
import tempfile
from pathlib import Path

import jax
import pytest

import tests.tiny  # noqa: F401
from rd_jax.config import Config, get_config
from rd_jax.system.compilation import keep_compiled_programs

NUM_DEVICES = 4
jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
os.environ["JAX_NUM_CPU_DEVICES"] = str(NUM_DEVICES)  # of the processes that tests start
# Tiny networks compile twice as fast, and run in no time anyway.
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"  # likewise
if "RD_JAX_TESTS_CACHE" not in os.environ:  # pytest's workers find their parent's here
    _CACHE = tempfile.TemporaryDirectory(prefix="rd_jax_tests_")
    os.environ["RD_JAX_TESTS_CACHE"] = _CACHE.name
os.environ["XDG_CACHE_HOME"] = os.environ["HF_HOME"] = os.environ["RD_JAX_TESTS_CACHE"]
os.environ["HF_HUB_OFFLINE"] = "1"
keep_compiled_programs()  # for other tests of this session, and processes that they start

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run what takes many minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes many minutes: run with --slow"))


@pytest.fixture
def config() -> Config:
    """A config for images of 32 pixels and the tiny backbone."""
    return get_config(
        data_dir="synthetic",
        category="weave",
        image_size=32,
        backbone="tiny",
        teacher_weights="random",
        batch_size=8,
        num_epochs=1,
        dtype="float32",
        log_every_steps=1,
        checkpoint_every_epochs=0,
    )


@pytest.fixture(scope="session")
def bottle_dir() -> Path:
    """The real MVTec AD category `bottle` at 256 pixels."""
    folder = SHARED / "data" / "mvtec_256"
    if not folder.is_dir():
        pytest.skip("the MVTec AD category bottle is not here (../shared/data/mvtec_256)")
    return folder


@pytest.fixture(scope="session")
def resnet18_npz() -> Path:
    """Real ImageNet weights of ResNet-18."""
    path = SHARED / "weights" / "resnet18_imagenet.npz"
    if not path.is_file():
        pytest.skip("real ImageNet weights are not here (../shared/weights)")
    return path
