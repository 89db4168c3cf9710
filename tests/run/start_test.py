"""What would harm a run, or other things, is one line before its first step."""

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rd_jax.data.synthetic import cached_data_dir, write_category
from rd_jax.export import __main__ as export
from rd_jax.predict import __main__ as predict
from rd_jax.store.lock import locked
from rd_jax.store.workdir import Workdir
from rd_jax.system.files import cache_folder
from tests.command import SMALL, Done, assert_one_line, captured, evaluation, run, training
from tests.run.conftest import HOLDOUT


@pytest.fixture(scope="module")
def one_category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data to copy: a category of few small images."""
    folder = tmp_path_factory.mktemp("data")
    write_category(folder, num_train=4, num_test=1, size=32)
    return folder


def start(data_dir: Path, workdir: Path, *more: str) -> Done:
    return run(*training(data_dir, workdir, *HOLDOUT, "--config.category=weave", *more))


def evaluate(data_dir: Path, workdir: Path, *more: str) -> Done:
    where = (f"--config.data_dir={data_dir}", "--config.category=weave")
    return run(*evaluation(workdir, *where, "--config.blur_sigma=1", *more))


def state(folder: Path) -> dict[str, int]:
    """All that is in a folder besides who works there, and when it was written."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".locks" not in path.parts)
    return {str(path): path.stat().st_mtime_ns for path in files}


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be made in the folder; for the superuser it takes a mount."""
    if os.geteuid():
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
        return
    mount = ["mount", "--bind", str(folder), str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing here stops the superuser from writing")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


FOLDERS = (".", "weave", "figures", ".locks")


@pytest.mark.parametrize(
    ("command", "name"),
    [(start, "weave/checkpoints"), *itertools.product((start, evaluate), FOLDERS)],
)
def test_a_folder_that_cannot_be_written_to_is_named_before_the_first_step(
    data_dir: Path, trained: Path, tmp_path: Path, name: str, command: Callable[..., Done]
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "work")
    before = state(workdir)
    with read_only(workdir / name):
        done = command(data_dir, workdir)
    assert_one_line(done, f"cannot write {workdir / name}")
    assert "choose another place" in done.stderr
    assert "step" not in done.stderr
    assert state(workdir) == before


def test_a_workdir_that_cannot_be_made_is_named(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with read_only(tmp_path):
        assert_one_line(start(data_dir, tmp_path / "a" / "b"), f"cannot write {tmp_path / 'a'}")
    assert_one_line(start(data_dir, tmp_path / "file"), f"cannot write {tmp_path / 'file'}: ")
    assert_one_line(start(data_dir, tmp_path / "file/a"), f"cannot write {tmp_path / 'file/a'}: ")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "weave").write_text("")
    assert_one_line(start(data_dir, tmp_path / "work"), f"write {tmp_path / 'work/weave'}: Not a d")


def test_an_output_that_cannot_be_written_is_named_before_anything_is_loaded(
    one_category: Path, tmp_path: Path
) -> None:
    def predicted(output: Path) -> Done:
        flags = ["--workdir", "absent", str(one_category), "--output", str(output)]
        return captured(predict.main, flags)

    def exported(output: Path) -> Done:
        return captured(export.main, ["--workdir", "absent", "--output", str(output)])

    for folder in ("out", "out/heatmaps"):
        (tmp_path / folder).mkdir()
        with read_only(tmp_path / folder):
            assert_one_line(predicted(tmp_path / "out"), f"cannot write {tmp_path / folder}: ")
            assert_one_line(exported(tmp_path / folder / "a.onnx"), f"write {tmp_path / folder}: ")
    (tmp_path / "file.onnx").write_text("")
    assert_one_line(predicted(tmp_path / "file.onnx"), "file.onnx: Not a directory")
    (tmp_path / "folder.onnx").mkdir()
    assert_one_line(exported(tmp_path / "folder.onnx"), "folder.onnx is a folder: name a file")
    assert_one_line(predicted(one_category), "would be taken for data, as those of ")
    assert_one_line(
        predicted(one_category / "weave/test/out"), f"as those of {one_category / 'weave'};"
    )
    assert_one_line(predicted(one_category / "weave/out"), "no checkpoint in absent")


@pytest.mark.parametrize("command", [start, evaluate])
def test_a_training_that_another_run_works_on_is_left_alone(
    data_dir: Path, trained: Path, tmp_path: Path, command: Callable[..., Done]
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "work")
    before = state(workdir)
    restart = ("--restart",) if command is start else ()
    with locked(Workdir(workdir).training("weave")) as is_ours:
        assert is_ours
        done = command(data_dir, workdir, *restart)
    assert_one_line(done, f"another process works on {workdir / 'weave'}: wait for it to end")
    assert state(workdir) == before


@pytest.mark.parametrize("restart", [(), ("--restart",)])
@pytest.mark.parametrize(
    ("workdir", "data"),
    [
        ("data", "data"),
        ("data/runs", "data"),
        ("data/weave", "data"),
        ("data/weave/test/good", "data"),
        ("link", "data"),
        ("weave/train/good", "linked"),
        ("work", "work/weave"),
        ("work", "work/weave/data"),
        (".", "linked"),
    ],
)
def test_a_workdir_in_the_data_or_around_them_is_refused(
    one_category: Path, tmp_path: Path, workdir: str, data: str, restart: tuple[str, ...]
) -> None:
    if data == "linked":  # whose category is a link to tmp_path/weave
        shutil.copytree(one_category / "weave", tmp_path / "weave")
        (tmp_path / "linked").mkdir()
        (tmp_path / "linked" / "weave").symlink_to(tmp_path / "weave")
    else:
        shutil.copytree(one_category, tmp_path / data)
    (tmp_path / "link").symlink_to("data")
    before = sorted(tmp_path.rglob("*"))
    done = start(tmp_path / data, tmp_path / workdir, *restart)
    assert_one_line(done, "choose another")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_workdir_in_the_generated_data_is_refused() -> None:
    folder = cached_data_dir(cache_folder())
    before = state(folder)
    for workdir in (folder, folder / "weave" / "test"):
        done = run("--config", "demo", *SMALL, "--workdir", str(workdir), "--restart")
        assert_one_line(done, "lies in the data")
    assert state(folder) == before


def test_data_beside_the_trainings_of_a_workdir_are_no_harm(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "work")
    shutil.copytree(data_dir, workdir / "data")
    done = start(workdir / "data", workdir)
    assert done.returncode == 0, done.stderr
    assert "weave: evaluated already" in done.stderr
