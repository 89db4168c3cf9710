import re
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from rd_jax.report import figures
from rd_jax.report.figures import draw, inline_figures, write_figures
from rd_jax.report.gallery import Evaluated
from rd_jax.store.workdir import Workdir
from tests.report.evaluated import THRESHOLDS, place_of, row, weave_split, write

ROW = row("a.b", 0.9876)
LOSSES = [{"step": 1, "loss": 2.0}, {"step": 1, "image_auroc": 0.5}, {"step": 2, "loss": 1.0}]
NAMES = ("roc", "pro", "scores", "loss")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    split, maps = weave_split(10)
    path = tmp_path_factory.mktemp("evaluated") / "evaluation.npz"
    return write(path, split, maps, maps.max((1, 2)), THRESHOLDS)


def test_the_curves_are_drawn_as_they_are(evaluated: Evaluated) -> None:
    drawn = draw(evaluated, THRESHOLDS, ROW, LOSSES)
    assert tuple(drawn) == NAMES
    lines = [figure.axes[0].lines for figure in drawn.values()]
    np.testing.assert_allclose(lines[0][1].get_xydata(), evaluated.image_roc)
    np.testing.assert_allclose(lines[0][2].get_xydata(), evaluated.pixel_roc)
    np.testing.assert_allclose(lines[1][0].get_xydata(), evaluated.pro)
    assert lines[2][0].get_xdata()[0] == THRESHOLDS.image_threshold
    np.testing.assert_allclose(lines[3][0].get_xydata(), [(1, 2), (2, 1)])
    assert "image AUROC 98.76 %" in drawn["roc"].get_label()


def test_every_image_is_in_the_histogram(evaluated: Evaluated) -> None:
    figure = draw(evaluated, THRESHOLDS, ROW, [])["scores"]
    shares = [patch.get_data().values.sum() for patch in figure.axes[0].patches]
    np.testing.assert_allclose(shares, 100)
    assert "normal (2), anomalous (8), threshold at 1.5" in figure.get_label()


def test_scores_that_hardly_differ_are_drawn(evaluated: Evaluated) -> None:
    scores = np.full(10, 0.5, np.float32)
    scores[evaluated.labels] = np.nextafter(np.float32(0.5), np.float32(1))
    figure = draw(evaluated._replace(scores=scores), None, ROW, [])["scores"]
    shares = [patch.get_data().values for patch in figure.axes[0].patches]
    assert [values.argmax() for values in shares] == [0, 0, 29, 29]


def test_what_is_not_there_is_not_drawn(tmp_path: Path) -> None:
    assert draw(None, None, ROW, []) == {}
    assert list(draw(None, None, ROW, LOSSES)) == ["loss"]
    split, maps = weave_split(1)
    split = replace(split, masks=None)
    evaluated = write(tmp_path / "evaluation.npz", split, maps, maps.max((1, 2)), None)
    assert list(draw(evaluated, None, ROW, [])) == ["scores"]


def test_figures_are_kept_for_papers_and_for_the_page(drawn_run: Path) -> None:
    kept = drawn_run / "figures"
    names = {path.name for path in kept.iterdir()}
    assert names == {f"a.b-{name}.{kind}" for name in NAMES for kind in ("svg", "png", "pdf")}
    with Image.open(kept / "a.b-roc.png") as image:
        assert image.size == (1080, 810)
    assert (kept / "a.b-roc.pdf").read_bytes().startswith(b"%PDF")


def test_figures_are_the_same_each_time_and_old_ones_go(tmp_path: Path, drawn_run: Path) -> None:
    place = place_of(tmp_path, "a.b")
    shutil.copytree(place_of(drawn_run, "a.b").folder, place.folder)
    old = tmp_path / "figures" / "a.b-pro.svg"
    old.parent.mkdir()
    old.write_text("<svg/>")
    for path in (place.shown, place.folder / "metrics.jsonl"):
        path.rename(f"{path}-moved")
    write_figures(place, ROW, THRESHOLDS)
    assert not list(old.parent.iterdir())
    Path(f"{place.folder / 'metrics.jsonl'}-moved").rename(place.folder / "metrics.jsonl")
    write_figures(place, ROW, THRESHOLDS)
    assert {path.name for path in old.parent.iterdir()} == {
        f"a.b-loss.{kind}" for kind in ("svg", "png", "pdf")
    }
    for path in old.parent.iterdir():
        assert path.read_bytes() == (drawn_run / "figures" / path.name).read_bytes()


def test_an_inline_figure_has_the_colours_of_the_page_and_ids_of_its_own(
    drawn_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "write_figures", None)  # nothing is drawn again
    drawn = inline_figures(place_of(drawn_run, "a.b"), ROW, THRESHOLDS, "7")
    assert len(drawn) == 4
    assert "AUPRO 98.76 %" in drawn[1][0]
    for name, (_, svg) in zip(NAMES, drawn, strict=True):
        ElementTree.fromstring(svg)
        assert "var(--ink)" in svg
        assert "<title>" not in svg
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()
        ids = set(re.findall(r'\bid="([^"]+)"', svg))
        assert all(each.startswith(f"7-{name}-") for each in ids)
        assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= ids
        assert set(re.findall(r'href="#([^"]+)"', svg)) <= ids


@pytest.mark.parametrize("damage", ["none there", "cut short"])
def test_figures_that_are_not_there_or_not_whole_are_drawn_again(
    tmp_path: Path, drawn_run: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    place, kept = place_of(tmp_path, "a.b"), Workdir(tmp_path).figures
    shutil.copytree(drawn_run / "figures", kept)
    if damage == "none there":
        shutil.rmtree(kept)
    else:
        (kept / "a.b-pro.svg").write_bytes((kept / "a.b-pro.svg").read_bytes()[:-500])

    def write_again(*_: object) -> None:
        shutil.copytree(drawn_run / "figures", kept, dirs_exist_ok=True)

    monkeypatch.setattr(figures, "write_figures", write_again)
    assert len(inline_figures(place, ROW, THRESHOLDS, "0")) == 4
