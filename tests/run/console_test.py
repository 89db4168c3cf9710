"""One command, `rd-jax`, beside `python -m rd_jax.main` and the others."""

import json
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from rd_jax import __main__ as console
from rd_jax.config import FIELDS
from tests.command import ROOT, Done, assert_one_line, captured

COMMANDS = ("train", "eval", "predict", "calibrate", "export", "weights")


def rd_jax(*arguments: object) -> Done:
    return captured(console.main, list(map(str, arguments)))


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(arguments: list[str]) -> None:
    done = rd_jax(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    for command in COMMANDS:
        assert f"\nrd-jax {command} " in done.stdout


def test_python_m_and_the_script_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rd_jax", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, rd_jax("--help").stdout)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    script = EntryPoint("rd-jax", scripts["rd-jax"], "console_scripts").load()
    monkeypatch.setattr(sys, "argv", ["rd-jax", "no-command"])
    assert captured(lambda _: script(), []).returncode == 2


def test_an_unknown_command_is_one_line() -> None:
    assert_one_line(rd_jax("trian", "--workdir", "x"), "'trian' is no command: choose one of train")


@pytest.mark.parametrize("command", ["train", "eval"])
def test_every_field_of_a_config_is_listed(command: str) -> None:
    done = rd_jax(command, "--config", "folder", "--help-config")
    assert done.returncode == 0
    for name, field in FIELDS.items():
        assert f"--config.{name}={field.default}\n    {field.help} (" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = import_module(f"rd_jax.{console._COMMANDS[command][0]}")
    try:
        code: object = console.main([command, "--help"])
    except SystemExit as exit_:  # as argparse ends
        code = exit_.code
    assert code == 0
    assert (module.__doc__ or "?").splitlines()[0] in capsys.readouterr().out


@pytest.mark.parametrize("code", [0, 1, 2, 130])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_gets_its_arguments_and_gives_its_exit_code(
    command: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def main(arguments: list[str]) -> int:
        seen.extend(arguments)
        return code

    module = import_module(f"rd_jax.{console._COMMANDS[command][0]}")
    monkeypatch.setattr(module, "main", main)
    assert console.main([command, "--workdir", "a b"]) == code
    assert seen[-2:] == ["--workdir", "a b"]
    if command in ("train", "eval"):
        assert seen[1] == f"--mode={command}"


def test_a_trained_category_is_evaluated_and_predicted(
    trained: Path, data_dir: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "work")
    (workdir / "weave" / "results.json").unlink()
    evaluated = rd_jax("eval", "--config", "mvtec:weave", "--workdir", workdir)
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads((workdir / "weave" / "results.json").read_text())["category"] == "weave"
    images, output = data_dir / "weave/test/good", tmp_path / "out"
    predicted = rd_jax("predict", "--workdir", workdir / "weave", images, "--output", output)
    assert predicted.stdout.startswith("2 of 2 images scored")
    (output / "no_image.png").write_text("no image")
    partly = ("--workdir", workdir / "weave", output / "no_image.png", "--output", tmp_path / "b")
    assert rd_jax("predict", *partly).returncode == 1


def test_mistakes_of_a_command_are_one_line(tmp_path: Path) -> None:
    missing = ("--config is missing", "the following arguments are required: --workdir")
    assert_one_line(rd_jax("train"), missing[0])
    assert_one_line(rd_jax("export", "--output", tmp_path / "a.onnx"), missing[1])
    assert_one_line(rd_jax("weights", "resnet10", "--output", tmp_path), "invalid choice")
