"""Installed, not only cloned: the wheel alone, in a folder without the project."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.command import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from what git would commit."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    source = folder / "source"
    for name in filter(None, done.stdout.split("\0")):
        if name.startswith(("rd_jax", "configs", "pyproject", "README", "LICENSE")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *build, str(source)], check=True)
    (path,) = folder.glob("rd_jax-*.whl")
    return path


def test_every_module_template_and_config_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [
        path
        for path in (ROOT / "rd_jax").rglob("*")
        if path.suffix in (".py", ".html", ".css", ".safetensors")
    ]
    expected = {str(path.relative_to(ROOT)) for path in files}
    expected |= {f"rd_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert expected <= names
    assert not any(name.startswith(("configs/", "tests/")) for name in names)


def test_a_bare_name_trains_and_predicts_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(installed)  # as it is installed
    (tmp_path / "empty").mkdir()

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path / "empty",
            env=os.environ | {"PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "from importlib.util import find_spec; print(find_spec('rd_jax').origin)"
    assert run("-c", where).startswith(str(installed))
    short = ("--config.num_epochs=1", "--config.image_size=32")
    # A second teacher, of which the first stage learns, compiles in a third of the time.
    short += ("--config.direction=forward", "--config.scales=(1,)")
    table = run("-m", "rd_jax.main", "--config", "demo", "--workdir", "runs/demo", *short)
    assert "| weave | " in table
    images = os.environ["XDG_CACHE_HOME"] + "/rd_jax/synthetic-3/weave/test/stain"
    said = run("-m", "rd_jax.predict", "--workdir", "runs/demo", images, "--output", "out")
    assert said.startswith("10 of 10 images scored")
    console = "from importlib.metadata import entry_points as found\n"
    console += (
        "(script,) = found(group='console_scripts', name='rd-jax')\nscript.load()(['--help'])"
    )
    assert run("-c", console).startswith("Reverse Distillation")
