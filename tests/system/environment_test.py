"""What surrounds a process changes no figure; what it lacks is done without, or is one line."""

import errno
import json
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
import optax
import pytest

import rd_jax
from rd_jax import main
from rd_jax.config import Config
from rd_jax.data import synthetic
from rd_jax.data.splits import load_split
from rd_jax.data.synthetic import write_category
from rd_jax.export import __main__ as export
from rd_jax.method.metrics import METRICS, metrics_of
from rd_jax.predict import __main__ as predict
from rd_jax.system import files
from rd_jax.system.errors import UserError
from rd_jax.system.files import cache_folder, user_path, write_whole
from tests.command import ROOT, SMALL, assert_one_line, captured, run
from tests.trained import save_training

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
# With each of them alone, a command could fail or give other figures.
HOSTILE = ASCII | {
    "JAX_ENABLE_X64": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_TRANSFER_GUARD": "disallow",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_DISABLE_JIT": "1",
    "JAX_DEBUG_NANS": "1",
    "JAX_DEBUG_INFS": "1",
    "MPLBACKEND": "garbage",
    "PYTHONIOENCODING": "ascii",
    "PYTHONWARNINGS": "error",
}


def python(code: str, *arguments: str, **environment: Any) -> subprocess.CompletedProcess:
    """A process of its own; `environment` may also hold its streams."""
    streams = {name: environment.pop(name, subprocess.PIPE) for name in ("stdout", "stderr")}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, env=os.environ | environment, **streams)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A category whose name and whose images' names are Chinese."""
    write_category(tmp_path / "data", num_train=8, num_test=2, size=32)
    category = (tmp_path / "data" / "weave").rename(tmp_path / "data" / "织物")
    for i, path in enumerate(sorted(category.glob("test/good/*.png"))):
        path.rename(path.with_name(f"图{i}.png"))
    return tmp_path / "data"


def test_a_hostile_environment_changes_no_figure(data_dir: Path, tmp_path: Path) -> None:
    flags = ("--config", "folder:织物", f"--config.data_dir={data_dir}", *SMALL)
    assert run(*flags, "--workdir", str(tmp_path / "expected")).returncode == 0
    code = """
import sys, tests.tiny
from rd_jax.system.environment import read_names_as_utf8
read_names_as_utf8()
from rd_jax import main
from rd_jax.export import __main__ as export
from rd_jax.predict import __main__ as predict
workdir, images, exported, *flags = sys.argv[1:]
training = ["--workdir", workdir]
codes = (
    main.main(["main", *training, *flags]),
    predict.main([*training, "--output", workdir + "/out", images]),
    export.main([*training, "--output", exported]),
)
sys.exit(str(codes) if any(codes) else 0)
"""
    images = data_dir / "织物" / "test" / "good"
    paths = map(str, (tmp_path / "run", images, tmp_path / "织.stablehlo"))
    done = python(code, *paths, *flags, **HOSTILE)
    assert done.returncode == 0, done.stderr
    assert rf"| {'织物'.encode('unicode_escape').decode()} |" in done.stdout
    expected, row = (
        json.loads((tmp_path / name / "织物" / "results.json").read_text("utf-8"))
        for name in ("expected", "run")
    )
    assert row["category"] == "织物"
    for name in METRICS:
        assert row[name] == pytest.approx(expected[name], abs=1e-5)
    assert row["teacher_sha256"] == expected["teacher_sha256"]
    rows = (tmp_path / "run" / "out" / "predictions.jsonl").read_text("utf-8").splitlines()
    assert [Path(json.loads(line)["file"]).name for line in rows] == ["图0.png", "图1.png"]
    assert (tmp_path / "织.stablehlo").exists()


def test_the_library_gives_float32_of_the_same_values_with_other_promotion() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 32, 32, 3), np.uint8)
    labels, masks = np.array([0, 1, 0, 1], bool), rng.random((4, 32, 32)) > 0.8
    masks[~labels] = False

    def all_of_it() -> list[Any]:
        # Adam's bias correction is not meant for strict promotion.
        model, optimizer = rd_jax.Model("micro"), optax.sgd(0.1)
        teacher = rd_jax.load_teacher("micro", "random")
        state = rd_jax.create_train_state(model, optimizer, jax.random.key(0))
        train_step = jax.jit(rd_jax.make_train_step(model, optimizer))
        state, trained = train_step(state, teacher, images)
        maps, scores = rd_jax.make_scorer(model)(teacher, state.student_variables, images)
        figures = (rd_jax.auroc(scores, labels), rd_jax.aupro(maps, masks), trained["loss"])
        of_metrics = metrics_of(np.asarray(maps), np.asarray(scores), labels, masks)
        return [state, maps, scores, *figures, np.float32(list(of_metrics.values()))]

    expected = all_of_it()
    for setting in (jax.enable_x64(True), jax.numpy_dtype_promotion("strict")):
        with setting:
            found = all_of_it()
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_importing_the_library_changes_nothing_around_it() -> None:
    code = (
        "import os, sys, jax; before = dict(os.environ), dict(jax.config.values), sys.stdout\n"
        "import rd_jax; assert before == (dict(os.environ), dict(jax.config.values), sys.stdout)\n"
        "assert 'matplotlib' not in sys.modules"
    )
    done = python(code, MPLBACKEND="garbage", HOME="/nowhere", XDG_CACHE_HOME="/nowhere")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a training in it."""
    monkeypatch.chdir(tmp_path)
    return save_training(tmp_path / "trained")


Commands = dict[str, tuple[Callable[[list[str]], int], list[str]]]


def commands(images: Path) -> Commands:
    return {
        "main": (
            main.main,
            ["main", "--config", "demo", *SMALL, "--workdir=run", "--config.num_epochs=1"],
        ),
        "predict": (predict.main, ["--workdir=trained", "--output=out", str(images)]),
        "export": (export.main, ["--workdir=trained", "--output=a.onnx"]),
    }


@pytest.mark.parametrize("name", ["main", "predict", "export"])
def test_without_a_device_the_commands_say_in_one_line_what_to_do(
    trained: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail() -> NoReturn:
        raise RuntimeError("Unable to initialize backend 'cuda'\nat a.cc:12")

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    done = captured(*commands(data_dir)[name])
    assert_one_line(
        done,
        "JAX finds no device for JAX_PLATFORMS=cuda (Unable to initialize backend 'cuda'): unset "
        "JAX_PLATFORMS or set it to cpu, or install JAX for that device",
    )
    assert {path.name for path in trained.parent.iterdir()} == {"trained", "data"}


def test_help_is_shown_also_by_a_python_without_docstrings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(main, "__doc__", None)
    done = captured(main.main, ["main", "--help"])
    assert done.returncode == 0
    assert "--workdir" in done.stdout
    assert "None\n" not in done.stdout.partition("--")[0]


def test_a_platform_that_is_not_here_is_one_line(tmp_path: Path) -> None:
    code = "import sys; from rd_jax.main import main; sys.exit(main(['main', *sys.argv[1:]]))"
    flags = ("--config=demo", "--workdir", str(tmp_path / "run"))
    done = python(code, *flags, JAX_PLATFORMS="nonsense")
    assert_one_line(done, "JAX finds no device for JAX_PLATFORMS=nonsense (")


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that is not in the system's list, as in many containers."""

    def unknown(uid: int) -> NoReturn:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    files.temporary_cache.cache_clear()


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("name", ["main", "predict", "export"])
def test_without_a_home_the_commands_do_without_a_cache_and_say_so_once(
    trained: Path, data_dir: Path, name: str
) -> None:
    done = captured(*commands(data_dir / "织物" / "train")[name])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no cache is kept (") == 1
    assert "set XDG_CACHE_HOME" in done.stderr
    assert not (trained.parent / "~").exists()


@pytest.mark.usefixtures("homeless", "trained")
def test_a_path_in_a_home_that_there_is_not_is_refused() -> None:
    with pytest.raises(UserError, match="~/x: there is no home folder"):
        user_path("~/x")
    assert user_path("~x") == Path("~x")
    assert_one_line(run("--config", "demo", "--workdir=~/run"), "~/run: there is no home folder")
    done = captured(predict.main, ["--workdir=~/run", "--output=out", "images"])
    assert_one_line(done, "argument --workdir: ~/run: there is no home folder")


def test_a_bucket_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    where = "gs://bucket/runs is no path on this machine: give one, or mount the bucket that it is"
    assert_one_line(run("--config", "demo", "--workdir=gs://bucket/runs"), where)
    done = run("--config", "folder", "--config.data_dir=gs://bucket/runs", "--workdir=runs")
    assert_one_line(done, where)
    for command in (predict.main, export.main):
        given = ["--workdir=gs://bucket/runs", "--output=x.onnx"]
        done = captured(command, given + ["images"] * (command is predict.main))
        assert_one_line(done, f"argument --workdir: {where}")
    assert not list(tmp_path.glob("gs*"))


@pytest.mark.parametrize("there", ["a file", "a folder below a file", "the kernel's"])
def test_a_cache_that_cannot_be_written_is_replaced_for_this_process(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    there: str,
) -> None:
    (tmp_path / "file").touch()
    places = {"a file": tmp_path / "file", "the kernel's": Path("/proc/cache")}
    monkeypatch.setenv("XDG_CACHE_HOME", str(places.get(there, tmp_path / "file" / "x")))
    files.temporary_cache.cache_clear()
    first = cache_folder()
    (first / "x").write_text("kept while the process lasts")
    assert cache_folder() == first
    assert caplog.text.count("no cache is kept") == 1


def test_the_generated_category_is_written_elsewhere_if_the_cache_is_full(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files.temporary_cache.cache_clear()

    def write(data_dir: Path) -> None:
        if data_dir.is_relative_to(tmp_path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_category(data_dir, num_train=1, num_test=1, size=32)

    monkeypatch.setattr(synthetic, "write_category", write)
    assert len(load_split(config, "weave").train) == 1


def test_a_relative_cache_is_in_the_folder_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert cache_folder() == tmp_path / "cache" / "rd_jax"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_may_be_read_by_whom_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "x", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == mode
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("reader", ["gone", "full", "closed"])
def test_who_reads_the_output_or_not_is_no_concern(reader: str, tmp_path: Path) -> None:
    code = f"""
import logging, os, sys
if {reader == "closed"}:
    os.close(1), os.close(2)
    sys.stdout = sys.stderr = None
from rd_jax.system.console import log_to_stderr
log_to_stderr()
print("x" * 100_000)
logging.warning("x")
with open(sys.argv[1], "w") as file:
    assert file.fileno() > 2
    os.write(2, b"from C++") if {reader == "closed"} else sys.stderr.write("x")
    file.write("whole")
"""
    path = tmp_path / "x"
    if reader == "gone":
        read, stream = os.pipe()
        os.close(read)
    else:
        stream = os.open("/dev/full" if reader == "full" else os.devnull, os.O_WRONLY)
    done = python(code, str(path), stdout=stream, stderr=stream)
    os.close(stream)
    assert done.returncode == 0
    assert path.read_text() == "whole"


def test_a_signal_may_come_while_the_log_is_written() -> None:
    code = """
import logging, signal
from rd_jax.system.console import log_to_stderr
log_to_stderr()
signal.signal(signal.SIGTERM, lambda *_: logging.warning("a signal"))
for step in range(200):
    logging.warning("step")
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the last ones come late
"""
    command, lines = [sys.executable, "-c", code], []
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            lines.append(line)
            if line.endswith("step\n"):
                process.send_signal(signal.SIGTERM)
    assert all(line.endswith(("step\n", "a signal\n")) for line in lines), lines
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        ("main", ("--config=folder", "--config.data_dir=/织物", "--workdir=x"), "/织物 is not a"),
        ("predict", ("--workdir=x", "--output=y", "/织物.png"), "/织物.png does not exist"),
        ("export", ("--workdir=x", "--output=/织物.gif"), "/织物.gif: its suffix must be"),
    ],
)
def test_names_are_utf8_where_python_would_only_know_ascii(
    module: str, flags: tuple[str, ...], message: str
) -> None:
    code = "import runpy, sys; runpy.run_module(sys.argv.pop(1), run_name='__main__')"
    done = python(code, f"rd_jax.{module}", *flags, **ASCII)
    assert_one_line(done, message)
