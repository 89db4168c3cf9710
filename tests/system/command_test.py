"""What surrounds a command changes no figure; what it lacks is one line and an exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
import pytest

from rd_jax.system import command
from rd_jax.system.command import Parser, num_processors, require_devices, run_command
from rd_jax.system.errors import UserError
from rd_jax.system.files import user_path
from rd_jax.system.interruption import Interrupted

ROOT = Path(__file__).parents[2]
# With each of them alone, a command could fail or give other figures.
HOSTILE = {
    "JAX_ENABLE_X64": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_DEFAULT_MATMUL_PRECISION": "float32",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_RANDOM_SEED_OFFSET": "5",
    "JAX_TRANSFER_GUARD": "disallow",
    "JAX_DISABLE_JIT": "1",
    "JAX_DEBUG_NANS": "1",
    "JAX_DEBUG_INFS": "1",
    "MPLBACKEND": "garbage",
    "PYTHONIOENCODING": "ascii",
    "PYTHONWARNINGS": "error",
}
FIGURES = """
import jax, jax.numpy as jnp, numpy as np, optax

def figures():
    normal = jax.jit(lambda key: jax.random.normal(key, (3, 5)))(jax.random.key(0))
    params, optimizer = {"a": jnp.ones((2, 5)), "b": jnp.float32(1)}, optax.adam(0.1)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    found = [normal, normal @ normal.T, jnp.arange(3) / 2, updates, normal / jnp.zeros(5)]
    leaves = jax.tree.map(np.asarray, jax.tree.leaves(found))
    return [[str(leaf.dtype), leaf.tolist()] for leaf in leaves]
"""
COMMAND = f"""
import json, logging, sys
from rd_jax.system.command import require_devices, run_command
{FIGURES}
def body():
    require_devices()
    print(json.dumps(figures()))
    logging.getLogger("rd_jax.x").info("told")
    logging.getLogger("other").info("not told")
    import matplotlib
    print("\u7ec7\u7269", matplotlib.rcParams["backend"], file=sys.stderr)
    return 3

sys.exit(run_command(body))
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """A process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, text=True, capture_output=True, env=os.environ | environment,
    )  # fmt: skip


def test_a_hostile_environment_changes_no_figure() -> None:
    here: dict[str, Any] = {}
    exec(FIGURES, here)
    done = python(COMMAND, **HOSTILE)
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout) == [
        [dtype, pytest.approx(np.array(values), rel=1e-6, nan_ok=True)]
        for dtype, values in here["figures"]()
    ]
    assert "not told" not in done.stderr
    assert done.stderr.splitlines()[0].endswith(" INFO told")
    assert done.stderr.splitlines()[-1] == r"\u7ec7\u7269 agg"


def test_importing_the_library_changes_nothing_around_it() -> None:
    code = """
import os, sys, jax, logging, warnings
from PIL import Image
def state():
    absl = logging.getLogger("absl")
    return (
        dict(os.environ), dict(jax.config.values), sys.stdout, sys.unraisablehook,
        Image.MAX_IMAGE_PIXELS, logging.root.level, absl.level, warnings.filters[:],
    )
# Whatever these do is their concern.
import absl.logging, flax, orbax.checkpoint, scipy.sparse, scipy.special
before = state()
import rd_jax
assert before == state()
assert "matplotlib" not in sys.modules
"""
    done = python(code, MPLBACKEND="garbage", HOME="/nowhere", XDG_CACHE_HOME="/nowhere")
    assert done.returncode == 0, done.stderr


def test_without_a_device_it_is_said_in_one_line_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> NoReturn:
        raise RuntimeError("Unable to initialize backend 'cuda'\nat a.cc:12")

    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(UserError) as caught:
        require_devices()
    assert str(caught.value).startswith(
        "JAX finds no device (Unable to initialize backend 'cuda'): unset "
        "JAX_PLATFORMS or set it to cpu, or install JAX for that device"
    )


def test_a_flag_that_xla_does_not_know_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = "--xla_nonsense=1"
    monkeypatch.setenv("XLA_FLAGS", flags)
    with pytest.raises(UserError, match=f"Unknown flag in XLA_FLAGS: {flags}: remove it from"):
        require_devices()


@pytest.fixture
def _nothing_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_set_up", "stop_on_signals"):
        monkeypatch.setattr(command, name, lambda: None)


@pytest.mark.usefixtures("_nothing_is_set_up")
@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("a bad\nvalue"), 2, "error: a bad value"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device"),
        (Interrupted("interrupted"), 130, "interrupted; go on"),
        (Interrupted("interrupted: a is saved at step 3"), 130, "interrupted: a is saved at"),
    ],
)  # fmt: skip
def test_an_error_that_stops_a_command_is_one_line_and_an_exit_code(
    capsys: pytest.CaptureFixture, error: BaseException, code: int, says: str
) -> None:
    def body() -> NoReturn:
        raise error

    assert run_command(body, lambda interrupt: f"{interrupt}; go on") == code
    captured = capsys.readouterr()
    assert captured.err.startswith(says)
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.usefixtures("_nothing_is_set_up")
def test_mistakes_of_developers_are_no_one_liners() -> None:
    assert run_command(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_flags_that_are_wrong_are_mistakes_of_the_user(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = Parser("python -m x", None)
    parser.add_argument("--workdir", type=user_path)
    with pytest.raises(UserError, match=r"unrecognized arguments: --work \(see --help\)"):
        parser.parse_args(["--work"])
    with pytest.raises(
        UserError, match="argument --workdir: gs://b is no path on this machine: gi"
    ):
        parser.parse_args(["--workdir=gs://b"])
    monkeypatch.setenv("HOME", "/home/x")
    assert parser.parse_args(["--workdir=~/織"]).workdir == Path("/home/x/織")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "--workdir" in capsys.readouterr().out


def test_a_process_may_use_fewer_processors_than_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 5}, raising=False)
    assert num_processors() == 3


def test_compiled_programs_are_kept_where_the_user_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: dict[str, Any] = {}
    monkeypatch.setattr(jax.config, "update", set_to.__setitem__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    command.keep_compiled_programs()
    assert Path(set_to["jax_compilation_cache_dir"]).is_relative_to(tmp_path / "rd_jax/compiled")
    set_to.clear()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    command.keep_compiled_programs()
    assert not set_to
