"""What surrounds whole commands changes no figure; what it lacks is one line, or done without."""

import json
import os
import pwd
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
from rd_jax.data.synthetic import write_category
from rd_jax.export import __main__ as export
from rd_jax.method.metrics import METRICS, metrics_of
from rd_jax.predict import __main__ as predict
from rd_jax.system import files
from tests.command import ROOT, assert_one_line, captured, results, run, succeeded, training
from tests.trained import save_training

# With each of them alone, a command could fail or give other figures.
HOSTILE = {
    "JAX_ENABLE_X64": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_TRANSFER_GUARD": "disallow",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_DISABLE_JIT": "1",
    "JAX_DEBUG_NANS": "1",
    "JAX_DEBUG_INFS": "1",
    "JAX_RANDOM_SEED_OFFSET": "5",
    "MPLBACKEND": "garbage",
    "PYTHONIOENCODING": "ascii",
    "PYTHONWARNINGS": "error",
}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A category whose name and whose images' names are Chinese."""
    write_category(tmp_path / "data", num_train=8, num_test=2, size=32)
    category = (tmp_path / "data" / "weave").rename(tmp_path / "data" / "织物")
    for i, path in enumerate(sorted(category.glob("test/good/*.png"))):
        path.rename(path.with_name(f"图{i}.png"))
    return tmp_path / "data"


def test_a_hostile_environment_changes_no_figure(data_dir: Path, tmp_path: Path) -> None:
    flags = training(data_dir, tmp_path / "expected")
    succeeded(*flags)
    code = """
import sys, tests.tiny
from rd_jax import main
from rd_jax.export import __main__ as export
from rd_jax.predict import __main__ as predict
workdir, images, exported, *flags = sys.argv[1:]
training = ["--workdir", workdir]
codes = (
    main.main(["main", *flags, *training]),
    predict.main([*training, "--output", workdir + "/out", images]),
    export.main([*training, "--output", exported]),
)
sys.exit(str(codes) if any(codes) else 0)
"""
    images = data_dir / "织物" / "test" / "good"
    paths = map(str, (tmp_path / "run", images, tmp_path / "织.stablehlo"))
    done = subprocess.run(
        [sys.executable, "-c", code, *paths, *flags],
        cwd=ROOT,
        env=os.environ | HOSTILE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert rf"| {'织物'.encode('unicode_escape').decode()} |" in done.stdout
    expected, row = (results(tmp_path / name / "织物") for name in ("expected", "run"))
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
        model, optimizer = rd_jax.Model("tiny"), optax.sgd(0.1)
        teacher = rd_jax.load_teacher("tiny", "random")
        state = rd_jax.create_train_state(model, optimizer, jax.random.key(0))
        train_step = jax.jit(rd_jax.make_train_step(model, optimizer))
        state, trained = train_step(state, teacher, images)
        maps, scores = rd_jax.make_scorer(model)(teacher, state.student_variables, images)
        aupro = np.float64(rd_jax.aupro(maps, masks))
        figures = (rd_jax.auroc(scores, labels), aupro, trained["loss"])
        of_metrics = metrics_of(np.asarray(maps), np.asarray(scores), labels, masks)
        return [state, maps, scores, *figures, np.float32(list(of_metrics.values()))]

    expected = all_of_it()
    for setting in (jax.enable_x64(True), jax.numpy_dtype_promotion("strict")):
        with setting:
            found = all_of_it()
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a training in it."""
    monkeypatch.chdir(tmp_path)
    return save_training(tmp_path / "trained" / "weave").parent


Commands = dict[str, tuple[Callable[[list[str]], int], list[str]]]


def commands(images: Path) -> Commands:
    return {
        "main": (
            main.main,
            ["main", *training(Path("synthetic"), Path("run"), "--config.num_epochs=1")],
        ),
        "predict": (predict.main, ["--workdir=trained", "--output=out", str(images)]),
        "export": (export.main, ["--workdir=trained", "--output=a.stablehlo"]),
    }


def test_help_is_shown_also_by_a_python_without_docstrings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(main, "__doc__", None)
    done = captured(main.main, ["main", "--help"])
    assert done.returncode == 0
    assert "--workdir" in done.stdout
    assert "None\n" not in done.stdout.partition("--")[0]


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
def test_a_path_in_a_home_that_there_is_not_is_one_line() -> None:
    assert_one_line(run("--config", "demo", "--workdir=~/run"), "~/run: there is no home folder")
    done = captured(predict.main, ["--workdir=~/run", "--output=out", "images"])
    assert_one_line(done, "argument --workdir: ~/run: there is no home folder")


def test_a_bucket_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    where = "gs://bucket/runs is no path on this machine: give one, or mount that bucket"
    assert_one_line(run("--config", "demo", "--workdir=gs://bucket/runs"), where)
    done = run("--config", "folder", "--config.data_dir=gs://bucket/runs", "--workdir=runs")
    assert_one_line(done, where)
    for command in (predict.main, export.main):
        given = ["--workdir=gs://bucket/runs", "--output=x.onnx"]
        done = captured(command, given + ["images"] * (command is predict.main))
        assert_one_line(done, f"argument --workdir: {where}")
    assert not list(tmp_path.glob("gs*"))
