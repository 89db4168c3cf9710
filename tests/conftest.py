"""Four simulated devices, a private cache, no network, and a backbone that compiles fast."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

import tests.tiny
from rd_jax import report
from rd_jax.config import Config, get_config
from rd_jax.method.models import cpu
from rd_jax.run import build
from rd_jax.system.compilation import keep_compiled_programs

NUM_DEVICES = 4
jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
os.environ["JAX_NUM_CPU_DEVICES"] = str(NUM_DEVICES)  # of the processes that tests start
# Tiny networks compile five times as fast without, and run in no time anyway.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"  # of the processes that tests start
if jax.__version_info__ < (0, 11):  # a later XLA ends the process at a flag that it has no more
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
    )
if "RD_JAX_TESTS_CACHE" not in os.environ:  # pytest's workers find their parent's here
    _CACHE = tempfile.TemporaryDirectory(prefix="rd_jax_tests_")
    os.environ["RD_JAX_TESTS_CACHE"] = _CACHE.name
os.environ["XDG_CACHE_HOME"] = os.environ["HF_HOME"] = os.environ["RD_JAX_TESTS_CACHE"]
os.environ["HF_HUB_OFFLINE"] = "1"
keep_compiled_programs()  # for other tests of this session, and processes that they start

# The authors' own networks on real images, computed as a user's are.
OPTIMISED = ("rd4ad_test.py",)

# Rooms in which other things than the arithmetic are the point, so that XLA's own convolutions will
# do: they are traced and compiled in half the time of those for a CPU.
QUICK = (
    *("run", "predict", "report", "store", "system", "docs_test.py", "bad_input_test.py"),
    *("train_test.py", "direction_test.py", "shapes_test.py", "embedded_teacher_test.py"),
)

# Where the report has its figures; to draw them takes as long as a training here.
DRAWN = ("report", "environment_test.py", "golden_test.py")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run what takes many minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes many minutes: run with --slow"))


@pytest.fixture(autouse=True, scope="module")
def _short_cuts(request: pytest.FixtureRequest) -> Iterator[None]:
    name, room = request.path.name, request.path.relative_to(Path(__file__).parent).parts[0]
    jax.config.update("jax_disable_most_optimizations", name not in OPTIMISED)
    with pytest.MonkeyPatch.context() as patch:
        if {room, name} & {*QUICK} and name != "golden_test.py":
            patch.setattr(cpu, "_is_on_cpu", lambda: False)
            patch.setenv(tests.tiny.XLA_CONVOLUTIONS, "true")
        if not {room, name} & {*DRAWN}:
            patch.setattr(report, "figures", tests.tiny.NONE_DRAWN, raising=False)
            patch.setenv(tests.tiny.NO_FIGURES, "true")
        yield
    build._make_distances.cache_clear()
    jax.clear_caches()  # and their memory


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


def shared(path: str, what: str) -> Path:
    """A path beside the project; without it the test is skipped, saying what is not there."""
    if not (SHARED / path).exists():
        pytest.skip(f"{what} not here (../shared/{path})")
    return SHARED / path


@pytest.fixture(scope="session")
def bottle_dir() -> Path:
    """The real MVTec AD category `bottle` at 256 pixels."""
    return shared("data/mvtec_256", "the MVTec AD category bottle is")


@pytest.fixture(scope="session")
def resnet18_npz() -> Path:
    """Real ImageNet weights of ResNet-18."""
    return shared("weights/resnet18_imagenet.npz", "real ImageNet weights are")
