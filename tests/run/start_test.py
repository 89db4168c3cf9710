"""What would harm a run, or other things, is one line before its first step."""

import json
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
from rd_jax.store.lock import take
from rd_jax.store.workdir import Workdir, training_of
from rd_jax.system.files import cache_folder
from tests.command import SMALL, Done, assert_one_line, captured, run
from tests.run.distributed_test import free_port, run_all
from tests.trained import save_training


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_category(folder, num_train=4, num_test=1, size=32)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs")
    save_training(workdir / "weave", holdout=None, train_sha256="of other images")
    (workdir / "figures").mkdir()
    (workdir / ".locks").mkdir()
    return workdir


def start(data_dir: Path, workdir: Path, *more: str) -> Done:
    common = ("--config", "configs/mvtec.py:weave", f"--config.data_dir={data_dir}", *SMALL)
    return run(*common, "--workdir", str(workdir), *more)


def evaluate(data_dir: Path, workdir: Path, *more: str) -> Done:
    mode = ("--mode", "eval", f"--config.data_dir={data_dir}")
    return run("--config", "configs/mvtec.py:weave", "--workdir", str(workdir), *mode, *more)


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


@pytest.mark.parametrize("command", [start, evaluate])
@pytest.mark.parametrize("name", [".", "weave", "weave/checkpoints", "figures", ".locks"])
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
    data_dir: Path, tmp_path: Path
) -> None:
    def predicted(output: Path) -> Done:
        flags = ["--workdir", "absent", str(data_dir), "--output", str(output)]
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
    assert_one_line(predicted(data_dir), "would be taken for data, as those of ")
    assert_one_line(predicted(data_dir / "weave/test/out"), f"as those of {data_dir / 'weave'};")
    assert_one_line(predicted(data_dir / "weave/out"), "no checkpoint in absent")


@pytest.mark.parametrize("seed", [None, 1])
def test_a_training_that_another_run_works_on_is_left_alone(
    data_dir: Path, trained: Path, tmp_path: Path, seed: int | None
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "work")
    training = training_of(workdir, "weave", seed)
    lock = take(Workdir(workdir), training)
    before = state(workdir)
    message = f"{training.folder} is being worked on by process {os.getpid()} on "
    assert_one_line(start(data_dir, workdir, "--restart"), message)
    if seed is None:
        assert_one_line(evaluate(data_dir, workdir), message)
    assert state(workdir) == before
    lock.release()
    assert_one_line(start(data_dir, workdir), "was trained with")


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
    data_dir: Path, tmp_path: Path, workdir: str, data: str, restart: tuple[str, ...]
) -> None:
    if data == "linked":  # whose category is a link to tmp_path/weave
        shutil.copytree(data_dir / "weave", tmp_path / "weave")
        (tmp_path / "linked").mkdir()
        (tmp_path / "linked" / "weave").symlink_to(tmp_path / "weave")
    else:
        shutil.copytree(data_dir, tmp_path / data)
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
    assert_one_line(start(workdir / "data", workdir), "was trained with")


def test_a_mistake_that_one_of_two_processes_sees_is_one_line_in_both(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    other_images, other_names = tmp_path / "other images", tmp_path / "other names"
    for folder in (other_images, other_names):
        shutil.copytree(data_dir, folder)
    (other_names / "weave").rename(other_names / "cloth")
    image = other_images / "weave/train/good/000.png"
    shutil.copy(image.with_name("001.png"), image)

    def command(data: Path, workdir: Path, *more: str) -> list[str]:
        common = ("--config", "configs/mvtec.py", f"--config.data_dir={data}", *SMALL)
        return [*common, "--workdir", str(workdir), *more]

    new, elsewhere = tmp_path / "new", "process 1 failed: its own output says why"
    unequal = "the processes were started with different "
    # What each of the two is started with, and what each says.
    cases: dict[str, tuple[list[str], list[str], str, str]] = {
        "no data": (
            command(data_dir, new),
            command(tmp_path / "absent", new),
            elsewhere,
            "absent is not a folder",
        ),
        "other images": (
            command(data_dir, new),
            command(other_images, new),
            *["the processes read different files in "] * 2,
        ),
        "other categories": (
            command(data_dir, new),
            command(other_names, new),
            "categories in data_dir " + str(data_dir),
            "(here cloth)",
        ),
        "another config": (
            command(data_dir, new),
            command(data_dir, new, "--config.adam_b1=0.7"),
            unequal + "config.adam_b1 (here 0.5)",
            unequal + "config.adam_b1 (here 0.7)",
        ),
        "another mode": (
            command(data_dir, trained),
            command(data_dir, trained, "--mode", "eval"),
            *[unequal + "--mode"] * 2,
        ),
        "no common workdir": (
            command(data_dir, new),
            command(data_dir, tmp_path / "new too"),
            *["is not the same folder for all processes"] * 2,
        ),
        "nothing can be written": (
            command(data_dir, new),
            command(data_dir, tmp_path / "file"),
            elsewhere,
            f"cannot write {tmp_path / 'file'}",
        ),
        "nothing to evaluate": (
            command(data_dir, trained, "--mode", "eval"),
            command(data_dir, tmp_path / "empty", "--mode", "eval"),
            elsewhere,
            "no checkpoint in ",
        ),
    }
    port = str(free_port())
    commands = [json.dumps([case[i] for case in cases.values()]) for i in range(2)]
    done = run_all([["tests.run.start_worker", str(i), "2", port, commands[i]] for i in range(2)])
    for i, (code, text, errors) in enumerate(done):
        assert code == 0, errors
        (last,) = (line for line in text.splitlines() if line.startswith("[["))  # not Gloo's
        for case, found in zip(cases.values(), json.loads(last), strict=True):
            assert_one_line(Done(*found), case[2 + i])
    assert not (new / "weave").exists()


def test_a_command_line_that_one_of_two_processes_cannot_read_ends_both(tmp_path: Path) -> None:
    common = (f"--coordinator_address=localhost:{free_port()}", "--num_processes=2", "--workdir")
    configs = ("configs/mvtec.py", "configs/absent.py")
    done = run_all(
        [
            ["tests.tiny_main", *common, str(tmp_path), f"--process_id={i}", "--config", configs[i]]
            for i in range(2)
        ]
    )
    messages = ("process 1 failed: its own output says why", "configs/absent.py")
    for (code, _, errors), message in zip(done, messages, strict=True):
        assert_one_line(Done(code, "", errors), message)
