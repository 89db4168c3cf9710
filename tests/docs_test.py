"""Commands and code of every page run, as printed, in a folder like a user's.

The networks are replaced by tiny ones, and trainings are short: fields are added to the commands
where the page does not set them. Batches are those of other tests, which have compiled for them.
"""

import json
import re
import runpy
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rd_jax import calibrate, config, fitting, main
from rd_jax.config import Config
from rd_jax.data import sources
from rd_jax.data.synthetic import write_category
from rd_jax.export import __main__ as export
from rd_jax.method.models import BACKBONES
from rd_jax.predict import __main__ as predict
from rd_jax.run import eval_mode, training
from rd_jax.weights import teacher
from tests.command import ROOT, captured
from tests.conftest import made_once
from tests.reference_weights import draw_images
from tests.trained import save_training

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "rd_jax.main": lambda arguments: main.main(["rd_jax.main", *arguments]),
    "rd_jax.predict": predict.main,
    "rd_jax.export": export.main,
    "rd_jax.calibrate": calibrate.main,
}
QUICK = {"num_epochs": 1, "image_size": 32, "batch_size": 4}
# What makes environments and what calls this suite: .ci/run runs it, in a clean checkout.
ELSEWHERE = re.compile(
    r"make (install|demo|novelty|test|lint|docs|package)\b.*|pip install .+"
    r"|python -m (pytest|tests)\b.*|source .+|git clone .+|cd .+"
)


def blocks(page: Path, languages: str) -> list[tuple[str, str]]:
    """Language and text of the page's blocks in these languages."""
    return re.findall(rf"```({languages})\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture(scope="session")
def prepared() -> Path:
    """Trainings that pages speak of without having made them."""

    def save(folder: Path) -> None:
        for name in ("mine/bracket", "demo/weave"):
            save_training(folder / name)

    return made_once("prepared", save)


def draw_data_sets(data: Path) -> None:
    """Write KolektorSDD2 and Real-IAD, as they are unpacked, with a few images."""
    ksdd2, part = data / "ksdd2", data / "Real-IAD/realiad_1024/audiojack"
    listed: dict = {"meta": {"normal_class": "OK", "prefix": "audiojack/"}, "train": [], "test": []}
    for i, image in enumerate(draw_images(8, 32)):
        is_bad, split = i % 4 == 3, "train" if i < 6 else "test"
        mask = Image.fromarray(np.full((32, 32), 255 * is_bad, np.uint8))
        place = f"NG/BX/S000{i}" if is_bad else f"OK/S000{i}"
        for folder, name in ((ksdd2 / split, f"1000{i}"), (part / place, "C1")):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{name}.png")
            mask.save(folder / f"{name}_GT.png")
        if not (is_bad and split == "train"):
            entry = {"category": "audiojack", "anomaly_class": "BX" if is_bad else "OK"}
            entry |= {"image_path": f"{place}/C1.png"}
            entry |= {"mask_path": f"{place}/C1_GT.png" if is_bad else None}
            listed[split].append(entry)
    jsons = data / "Real-IAD/realiad_jsons/realiad_jsons"
    jsons.mkdir(parents=True)
    (jsons / "audiojack.json").write_text(json.dumps(listed))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder: data, new images, and arrays of images."""
    write_category(tmp_path / "data", num_train=8, num_test=1, size=32)
    for name in ("mvtec/bottle", "mvtec/cable", "parts/bracket"):
        shutil.copytree(tmp_path / "data" / "weave", tmp_path / "data" / name)
    draw_data_sets(tmp_path / "data")
    images = draw_images(8, 32)
    np.save(tmp_path / "images.npy", images[:4])
    for name, chosen in (("new_images", images[:4]), ("more_good", images[4:])):
        (tmp_path / name).mkdir()
        for i, image in enumerate(chosen):
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
    for name in [name for name in BACKBONES if "resnet" in name]:
        monkeypatch.setitem(BACKBONES, name, BACKBONES["tiny"])
    monkeypatch.setitem(BACKBONES, "resnet26", BACKBONES["tiny"])  # which a page adds
    load_teacher = teacher.load_teacher
    monkeypatch.setattr(
        teacher,
        "load_teacher",
        lambda backbone, _, layer4: load_teacher(backbone, "random", layer4),
    )
    get_config, find_categories = config.get_config, sources.find_categories

    def quick_config(**fields: object) -> Config:
        many = {"batch_size": 16} if fields.get("dataset") else {}  # images of ten classes
        return get_config(**fields | QUICK | many)

    for module in (config, fitting):
        monkeypatch.setattr(module, "get_config", quick_config)
    for module in (training, eval_mode):  # of ten classes
        monkeypatch.setattr(module, "find_categories", lambda *given: find_categories(*given)[:2])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_commands(text: str) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words or ELSEWHERE.fullmatch(" ".join(words)):
            continue
        assert words[:2] == ["python", "-m"], line
        done = captured(COMMANDS[words[2]], words[3:])
        assert done.returncode == 0, f"{line}\n{done.stderr}"


# JAX warns of it, and OpenVINO does so, before anything of JAX is used in the child.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "bash|python")], ids=lambda page: page.stem
)
def test_every_block_runs_as_printed(page: Path, folder: Path, prepared: Path) -> None:
    for name in ("mine", "demo"):
        if not re.search(rf"main .*--workdir runs/{name}\b", page.read_text()):
            shutil.copytree(prepared / name, folder / "runs" / name)
    for i, (language, text) in enumerate(blocks(page, "bash|python")):
        if language == "bash":
            run_commands(text)
        else:
            script = folder / f"block_{i}.py"
            script.write_text(text)
            runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []


def test_the_front_page_is_short() -> None:
    assert len(PAGES[0].read_text().splitlines()) <= 200
