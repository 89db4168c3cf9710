"""The same command, started as often as one likes, shares its trainings."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import pytest

from rd_jax.data.synthetic import write_category
from rd_jax.run import training as training_module
from rd_jax.run.task import Task
from rd_jax.store.lock import take
from rd_jax.store.workdir import Workdir, training_of
from rd_jax.system.errors import UserError
from tests.command import METRICS, ROOT, SMALL, Done, assert_one_line, run
from tests.run.end_to_end_test import results

CATEGORIES = ("a", "b", "c", "d", "e", "f")
FEW = ("a", "b", "c")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(CATEGORIES):
        write_category(folder, num_train=4, num_test=1, size=32, seed=seed)
        (folder / "weave").rename(folder / name)
    return folder


def arguments(data_dir: Path, workdir: Path, *more: str) -> tuple[str, ...]:
    common = ("--config", "configs/mvtec.py", f"--config.data_dir={data_dir}", *SMALL)
    return (*common, "--config.checkpoint_every_epochs=1", "--workdir", str(workdir), *more)


@pytest.fixture(scope="module")
def alone(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run leaves of a few categories."""
    workdir = tmp_path_factory.mktemp("alone")
    done = run(*arguments(data_dir, workdir, f"--config.category={','.join(FEW)}"))
    assert done.returncode == 0, done.stderr
    return workdir


class Started:
    """A process of the command, and what it leaves."""

    def __init__(self, log: Path, *arguments: str, **environment: str):
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.tiny_main", *arguments],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def done(self) -> Done:
        text, _ = self.process.communicate(timeout=400)
        return Done(self.process.returncode, text, self.log.read_text())


def wait_until_held(workdir: Path, count: int) -> None:
    """Returns when so many trainings were taken."""
    while len(list((workdir / ".locks").glob("*/*.json"))) < count:
        time.sleep(0.05)


def trained(done: Done) -> list[tuple[str, str]]:
    """The categories that a run trained, and from which step on."""
    return re.findall(r" (\w+): 4 images, steps (\d+) to ", done.stderr)


def figures(workdir: Path, category: str) -> dict[str, float]:
    row = results(workdir, category)
    return {name: row[name] for name in (*METRICS, "num_steps")}


def test_four_processes_of_two_devices_train_each_of_six_categories_once(
    data_dir: Path, tmp_path: Path
) -> None:
    workdir, go = tmp_path / "work", tmp_path / "go"
    environment = {"JAX_NUM_CPU_DEVICES": "2", "WAIT_FOR": str(go)}
    flags = arguments(data_dir, workdir, "--config.num_epochs=1")
    started = [Started(tmp_path / f"{i}.log", *flags, **environment) for i in range(4)]
    wait_until_held(workdir, 4)
    go.touch()
    found = [process.done() for process in started]
    assert [done.returncode for done in found] == [0] * 4, found
    assert all(trained(done) for done in found)
    assert sorted(name for done in found for name, _ in trained(done)) == [*CATEGORIES]
    (table,) = (done.stdout for done in found if done.stdout)
    assert all(f"| {name} | " in table for name in CATEGORIES)
    assert all(f"| {name} | " in (workdir / "results.md").read_text() for name in CATEGORIES)
    assert (workdir / "report.html").exists()
    for done in found:
        if not done.stdout:
            assert re.search("last one to finish writes the r|, by the last to finish", done.stderr)


@pytest.mark.parametrize("on_two_machines", [False, True])
def test_the_training_of_a_killed_process_is_gone_on_with_by_another(
    data_dir: Path, alone: Path, tmp_path: Path, on_two_machines: bool
) -> None:
    workdir, go, dead = tmp_path / "work", tmp_path / "go", tmp_path / "dead"
    flags = arguments(data_dir, workdir, f"--config.category={','.join(FEW)}")
    of_other = {"WAIT_FOR": str(dead)}
    if on_two_machines:  # which have the workdir in common, and no images
        of_other |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        of_other |= {"JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}
    killed = Started(tmp_path / "killed.log", *flags, KILL_AT="training", WAIT_FOR=str(go))
    wait_until_held(workdir, 1)
    other = Started(tmp_path / "other.log", *flags, **of_other)
    wait_until_held(workdir, 2)
    go.touch()
    assert killed.done().returncode == -signal.SIGKILL
    dead.touch()
    done = other.done()
    assert done.returncode == 0, done.stderr
    begun = dict(trained(killed.done()))
    steps = dict(trained(done))
    assert len(begun) == 1
    assert {name: step != "0" for name, step in steps.items()} == {
        name: name in begun for name in FEW
    }
    assert list(steps)[-1] in begun  # what others hold is looked at again last
    for name in FEW:
        assert figures(workdir, name) == figures(alone, name)
        assert f"| {name} | " in done.stdout
    if on_two_machines:  # it decoded what it took
        assert len(list((tmp_path / "cache" / "rd_jax" / "images").glob("*.npy"))) == 3 * 3


def test_what_another_run_works_on_is_left_to_it_and_what_is_free_is_trained(
    data_dir: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "work"
    flags = arguments(data_dir, workdir, "--config.category=a,b")
    held = take(Workdir(workdir), training_of(workdir, "a"))
    decoded = []
    load_split = training_module.load_split
    monkeypatch.setattr(
        training_module, "load_split", lambda *given: decoded.append(given[1]) or load_split(*given)
    )
    done = run(*flags)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    who = f"{workdir / 'a'} is being worked on by process {os.getpid()} on "
    (line,) = (line for line in done.stderr.splitlines() if who in line)
    assert line.endswith("; the last one to finish writes the results")
    assert [name for name, _ in trained(done)] == decoded == ["b"]
    assert not (workdir / "results.md").exists()
    late = run(*flags)
    assert (late.returncode, late.stdout, trained(late)) == (0, "", []), late.stderr
    assert who in late.stderr
    assert decoded == ["b"]
    other_config = run(*flags, "--config.learning_rate=0.1")
    assert_one_line(other_config, "another config: learning_rate (0.005, now 0.1)")
    held.release()
    last = run(*flags)
    assert last.returncode == 0, last.stderr
    assert [name for name, _ in trained(last)] == ["a"]
    assert "| a | " in last.stdout
    assert figures(workdir, "a") == figures(alone, "a")


ALONE = ("--config.category=c",)
JOINT = ("--config.category=a,b", "--config.joint=True")
SEEDS = ("--config.category=c", "--config.seeds=1,2")


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (ALONE, JOINT, "is of a training of this category alone"),
        (JOINT, ALONE, "holds one training for all categories"),
        (ALONE, SEEDS, "holds a training of one seed"),
        (SEEDS, ALONE, "holds trainings of several seeds"),
    ],
)
def test_a_run_of_another_layout_that_begins_at_the_same_time_is_refused(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: tuple[str, ...],
    second: tuple[str, ...],
    message: str,
) -> None:
    planned = training_module.planned

    def begun_between(*given: Any) -> list[Task]:
        monkeypatch.setattr(training_module, "planned", planned)
        assert_one_line(run(*arguments(data_dir, tmp_path, *first)), "stopped")
        return planned(*given)

    def stopped(task: Task, *_: object) -> None:
        (task.training.checkpoints / "1.orbax-checkpoint-tmp").mkdir()
        raise UserError("stopped")

    monkeypatch.setattr(training_module, "planned", begun_between)
    monkeypatch.setattr(training_module, "_train_and_evaluate", stopped)
    assert_one_line(run(*arguments(data_dir, tmp_path, *second)), message)


def test_an_empty_folder_is_not_left_of_what_could_not_begin(
    data_dir: Path, tmp_path: Path
) -> None:
    data, workdir = shutil.copytree(data_dir, tmp_path / "data"), tmp_path / "work"
    (data / "a" / "train" / "good" / "000.png").write_bytes(b"no image")
    assert_one_line(run(*arguments(data, workdir, "--config.category=a")), "000.png")
    assert not (workdir / "a").exists()
