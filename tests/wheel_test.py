"""Installed, not only cloned: the wheel alone, in a folder without the project."""

import email
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import rd_jax
from tests.command import ROOT

REPOSITORY = "https://code.example/rd_jax"
# A user's program. Without the package's types an "ignore" is unused, and what is asserted is Any.
PROGRAM = """
from typing import assert_type

import numpy as np
import rd_jax

predictor = rd_jax.load_predictor("runs/mine")
result = rd_jax.score_image(predictor, np.zeros((64, 64, 3), np.uint8))
assert_type(result.score, float)
assert_type(result.is_anomalous, bool | None)
rd_jax.score_image("a name", result.anomaly_map)  # type: ignore[arg-type]
rd_jax.fit("parts", 5)  # type: ignore[arg-type]
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from what git would commit, once its owner gave it an address."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    source = folder / "source"
    for name in filter(None, done.stdout.split("\0")):
        if name.startswith(("rd_jax", "configs", "pyproject", "setup.py", "README", "LICENSE")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    project = source / "pyproject.toml"
    given = re.sub(
        r'# (\[project\.urls\]\n)# (Repository = ").*"', rf'\1\2{REPOSITORY}"', project.read_text()
    )
    assert REPOSITORY in given
    project.write_text(given)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *build, str(source)], check=True)
    (path,) = folder.glob("rd_jax-*.whl")
    return path


def test_every_module_template_and_config_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [
        path
        for path in (ROOT / "rd_jax").rglob("*")
        if path.suffix in (".py", ".html", ".css", ".safetensors", ".typed")
    ]
    expected = {str(path.relative_to(ROOT)) for path in files}
    expected |= {f"rd_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert expected <= names
    assert not any(name.startswith(("configs/", "tests/")) for name in names)


def test_an_index_shows_the_version_and_links_that_lead_to_the_repository(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith("/METADATA"))
        metadata = email.message_from_bytes(file.read(name))
    assert metadata["Version"] == rd_jax.__version__
    page = str(metadata.get_payload())
    links = set(re.findall(r"\]\(([^)]+)\)", page))
    assert f"{REPOSITORY}/raw/HEAD/docs/heatmaps.png" in links
    assert f"{REPOSITORY}/blob/HEAD/docs/own_parts.md#folders" in links
    assert all(link.startswith("https://") for link in links)


def test_mypy_knows_the_types_of_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env")
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env")}))
    zipfile.ZipFile(wheel).extractall(site)
    (site / "rest.pth").write_text(sysconfig.get_path("purelib"))  # what the wheel requires
    (tmp_path / "program.py").write_text(PROGRAM)
    python = ("--python-executable", str(tmp_path / "env" / "bin" / "python"))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *python, "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_a_bare_name_trains_and_predicts_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(installed)  # as it is installed
    (tmp_path / "empty").mkdir()
    # It brings 200 MB along, and is needed for its data sets alone.
    (installed / "tensorflow_datasets.py").write_text("raise AssertionError")

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
