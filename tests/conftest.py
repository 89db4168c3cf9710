"""Four simulated devices, one cache for all workers, no network, and runs that are trained once."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import pytest
import sklearn.datasets
from filelock import FileLock

from rd_jax.config import Config, get_config
from rd_jax.data.synthetic import write_category
from rd_jax.method.models import cpu
from rd_jax.report import figures
from rd_jax.run import programs
from tests import tiny, tiny_main

NUM_DEVICES = 4
jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_NUM_CPU_DEVICES"] = str(NUM_DEVICES)  # of the processes that tests start
# Tiny networks compile five times as fast without, and run in no time anyway.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"  # of the processes that tests start
if jax.__version_info__ < (0, 11):  # a later XLA ends the process at a flag that it has no more
    # Neither fewer and larger kernels nor more threads, which cost as much as they bring here.
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false "
        "--xla_cpu_parallel_codegen_split_count=1"
    )
if "RD_JAX_TESTS_CACHE" not in os.environ:  # pytest's workers find their parent's here
    _CACHE = tempfile.TemporaryDirectory(prefix="rd_jax_tests_")
    os.environ["RD_JAX_TESTS_CACHE"] = _CACHE.name
SESSION = Path(os.environ["RD_JAX_TESTS_CACHE"])
os.environ["XDG_CACHE_HOME"] = os.environ["HF_HOME"] = str(SESSION)
os.environ["HF_HUB_OFFLINE"] = "1"
# What one worker, or a process that a test starts, has compiled, others only load. The keys are
# those of JAX, so that a changed program is another one; nothing outlives the session.
jax.config.update("jax_compilation_cache_dir", str(SESSION / "compiled"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(SESSION / "compiled")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# The authors' own networks on real images, computed as a user's are.
OPTIMISED = ("rd4ad_test.py",)

# Where the convolutions for a CPU are computed with. Elsewhere XLA's own stand for them, which are
# traced and compiled in a quarter of the time.
OWN_CONVOLUTIONS = (
    *("convolution_test.py", "score_test.py"),
    *("weights", "golden_test.py", "precision_test.py", "speed_test.py", "wheel_test.py"),
)

# Where figures are drawn, which takes as long as a training here.
DRAWN = ("report", "environment_test.py")

# What takes longest and would leave one of two workers alone at the end.
FIRST = (
    *("run", "docs_test.py", "notebook_test.py", "parity_test.py"),
    *("recipe_test.py", "speed_test.py", "wheel_test.py"),
)

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run what takes many minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not {*_place(item.path)} & {*FIRST})
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes many minutes: run with --slow"))


def _place(path: Path) -> tuple[str, str]:
    """The room of a test module, and its name."""
    return path.relative_to(Path(__file__).parent).parts[0], path.name


def _arithmetic(path: Path) -> tuple[bool, bool]:
    """Whether a module computes without XLA's optimisations, and with XLA's own convolutions."""
    names = {*_place(path)}
    return not names & {*OPTIMISED}, not names & {*OWN_CONVOLUTIONS}


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Forget what was traced where other programs follow, and with it the memory that it takes."""
    if nextitem is None:
        return
    here, there = ((_place(i.path)[0], *_arithmetic(i.path)) for i in (item, nextitem))
    if here != there:
        jax.clear_caches()
        for compiled in (programs.encoder, programs.train_steps, programs._row_of):
            compiled.cache_clear()


@contextmanager
def _short_cuts(xlas_convolutions: bool = True, figures_too: bool = False) -> Iterator[None]:
    """Leave out what is not the point, here and in processes that are started inside."""
    with pytest.MonkeyPatch.context() as patch:
        if xlas_convolutions:
            patch.setattr(cpu, "_is_on_cpu", lambda: False)
            patch.setenv(tiny.XLA_CONVOLUTIONS, "true")
        if figures_too:
            patch.setattr(figures, "write_figures", tiny_main.WRITE_FIGURES)
            patch.delenv(tiny_main.NO_FIGURES, raising=False)
        else:
            patch.setattr(figures, "write_figures", tiny_main.no_figures)
            patch.setenv(tiny_main.NO_FIGURES, "true")
        yield


@pytest.fixture(autouse=True, scope="module")
def _arithmetic_and_figures(request: pytest.FixtureRequest) -> Iterator[None]:
    is_quick, has_xlas_convolutions = _arithmetic(request.path)
    jax.config.update("jax_disable_most_optimizations", is_quick)
    with _short_cuts(has_xlas_convolutions, bool({*_place(request.path)} & {*DRAWN})):
        yield


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


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the session that `make` fills, in whichever worker comes first.

    Nobody writes into it afterwards: tests change copies.
    """
    folder, done = SESSION / name, SESSION / f"{name}.done"
    with FileLock(f"{folder}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            with _short_cuts(figures_too=True):  # before those of the first module
                make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Two generated categories of 12 training images and 10 test images each."""

    def write(folder: Path) -> None:
        for seed, name in ((1, "cloth"), (0, "weave")):
            write_category(folder, num_train=12, num_test=2, size=64, seed=seed)
            (folder / "weave").rename(folder / name)

    return made_once("data", write)


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sixth of scikit-learn's digits, about 30 of each."""
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    few = images[:300], labels[:300]
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda return_X_y: few)  # noqa: ARG005, N803


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
