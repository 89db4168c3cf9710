"""The same command, started as often as one likes, shares its trainings."""

import logging
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from rd_jax.store.lock import locked
from rd_jax.store.workdir import Workdir
from tests.command import Done, Process, assert_one_line, results, run, succeeded, training
from tests.run.conftest import HOLDOUT, KEPT, LAST_STEP
from tests.run.whole_run_test import same_figures


def begun(done: Done) -> list[tuple[str, str]]:
    """The trainings that a run began, and from which step on."""
    return re.findall(r"INFO (\w+(?:, seed \d)?): 12 images, steps (\d+) to ", done.stderr)


class At(logging.Handler):
    """Calls a function at the first line of the log that holds a text."""

    def __init__(self, text: str, call: Callable[[], object]):
        super().__init__()
        self.text, self.call = text, call

    def emit(self, record: logging.LogRecord) -> None:
        if self.text in record.getMessage():
            logging.getLogger("rd_jax").removeHandler(self)
            self.call()


def test_two_processes_train_each_of_four_trainings_once(data_dir: Path, tmp_path: Path) -> None:
    workdir, go = tmp_path / "work", tmp_path / "go"
    flags = training(data_dir, workdir, *HOLDOUT, "--config.num_epochs=1", "--config.seeds=0,1")
    waits = {"AT": "images, steps 0 to", "WAIT_FOR": str(go)}
    started = [Process(tmp_path / f"{i}.log", *flags, **waits) for i in range(2)]
    for process in started:
        process.wait_for("images, steps 0 to")  # each has taken one
    go.touch()
    found = [process.done() for process in started]
    assert [done.returncode for done in found] == [0, 0], found
    taken = [begun(done) for done in found]
    assert all(taken)
    assert sorted(name for name, _ in taken[0] + taken[1]) == [
        f"{name}, seed {seed}" for name in ("cloth", "weave") for seed in (0, 1)
    ]
    table = (workdir / "results.md").read_text()
    assert all(f"| {name} | " in table for name in ("cloth", "weave"))
    assert results(workdir / "weave")["seeds"] == results(workdir / "cloth")["seeds"] == [0, 1]
    assert (workdir / "report.html").exists()


def test_the_training_of_a_killed_process_is_gone_on_with_by_another(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    workdir, go = tmp_path / "work", tmp_path / "go"
    flags = training(data_dir, workdir, *HOLDOUT, *KEPT)
    dies = {"AT": f"cloth: step {LAST_STEP} of", "WAIT_FOR": str(go), "SIGNAL": "SIGKILL"}
    first = Process(tmp_path / "log", *flags, **dies)
    first.wait_for(dies["AT"])
    killed: list[Done] = []

    def kill() -> None:
        go.touch()
        killed.append(first.done())

    at = At("weave: 12 images, steps 0 to", kill)
    logging.getLogger("rd_jax").addHandler(at)
    try:
        done = succeeded(*flags)
    finally:
        logging.getLogger("rd_jax").removeHandler(at)
    assert killed[0].returncode == -signal.SIGKILL
    assert begun(killed[0]) == [("cloth", "0")]
    # What others hold is looked at again after each training; the checkpoint was of step 2.
    assert begun(done) == [("weave", "0"), ("cloth", "2")]
    for name in ("cloth", "weave"):
        assert same_figures(results(workdir / name), results(trained / name))
        assert f"| {name} | " in done.stdout


def test_a_run_trains_only_what_no_other_run_works_on(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "work"
    shutil.copytree(trained / "weave", workdir / "weave")
    shutil.rmtree(workdir / "weave" / "checkpoints" / str(LAST_STEP))
    flags = training(data_dir, workdir, *HOLDOUT, *KEPT)
    with locked(Workdir(workdir).training("cloth")) as is_ours:
        assert is_ours
        done = succeeded(*flags)
        assert begun(done) == [("weave", "2")]
        assert "other processes work on cloth" in done.stderr
        assert "| weave | " in done.stdout
        assert "| cloth | " not in done.stdout
        again = succeeded(*flags)
        assert begun(again) == []
        other_config = run(*flags, "--config.learning_rate=0.1")
        assert_one_line(other_config, "another config: learning_rate (0.005, now 0.1)")
    last = succeeded(*flags)
    assert begun(last) == [("cloth", "0")]
    for name in ("cloth", "weave"):
        assert same_figures(results(workdir / name), results(trained / name))
        assert f"| {name} | " in last.stdout


def test_a_summary_holds_all_that_is_there_whatever_its_time(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    """The clock was ahead when another run wrote the summary, which lacks a category."""
    workdir = tmp_path / "work"
    shutil.copytree(trained / "weave", workdir / "weave")
    flags = training(data_dir, workdir, *HOLDOUT, *KEPT)
    succeeded(*flags, "--config.category=weave")
    shutil.copytree(trained / "cloth", workdir / "cloth")
    tomorrow = time.time() + 86_400
    for path in (workdir, *workdir.rglob("*")):
        os.utime(path, (tomorrow, tomorrow))
    for both in (("--config.category=weave",), ()):
        done = succeeded(*flags, *both)
        assert begun(done) == []
        page, table = ((workdir / name).read_text() for name in ("report.html", "results.md"))
        for name in ("cloth", "weave"):
            assert f"| {name} | " in table
            assert f"| {name} | " in done.stdout
            assert f"{name}</" in page


def test_an_empty_folder_is_not_left_of_what_could_not_begin(
    data_dir: Path, tmp_path: Path
) -> None:
    data, workdir = shutil.copytree(data_dir, tmp_path / "data"), tmp_path / "work"
    (data / "weave" / "train" / "good" / "000.png").write_bytes(b"no image")
    done = run(*training(data, workdir, "--config.category=weave"))
    assert_one_line(done, "000.png")
    assert not (workdir / "weave").exists()
