import re
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from rd_jax.report.figures import draw, inline_figures, write_figures
from rd_jax.report.gallery import Evaluated
from rd_jax.store.workdir import Workdir
from tests.report.evaluated import CHECKSUM, STORED, THRESHOLDS, place_of, row, weave_split, write

ROW = row("a.b", 0.9876, checkpoint=CHECKSUM)
LOSSES = [(1, 2.0), (2, 1.0)]
NAMES = ("roc", "pro", "scores", "loss")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    split, maps = weave_split(10)
    path = tmp_path_factory.mktemp("evaluated") / "evaluation.npz"
    return write(path, split, maps, maps.max((1, 2)), THRESHOLDS)


def test_the_curves_are_drawn_as_they_are(evaluated: Evaluated) -> None:
    drawn = draw(evaluated, STORED, ROW, LOSSES)
    assert tuple(drawn) == NAMES
    lines = [figure.axes[0].lines for figure in drawn.values()]
    np.testing.assert_allclose(lines[0][1].get_xydata(), evaluated.image_roc)
    np.testing.assert_allclose(lines[0][2].get_xydata(), evaluated.pixel_roc)
    np.testing.assert_allclose(lines[1][0].get_xydata(), evaluated.pro)
    assert lines[2][0].get_xdata()[0] == THRESHOLDS.image_threshold
    np.testing.assert_allclose(lines[3][0].get_xydata(), [(1, 2), (2, 1)])
    assert "image AUROC 98.76 %" in drawn["roc"].get_label()
    assert drawn["loss"].get_label() == "Training loss: 2 to 1"


def test_every_image_is_in_the_histogram(evaluated: Evaluated) -> None:
    figure = draw(evaluated, STORED, ROW, [])["scores"]
    shares = [patch.get_data().values.sum() for patch in figure.axes[0].patches]
    np.testing.assert_allclose(shares, 100)
    assert "normal (2), anomalous (8), held out (12), threshold at 1.5" in figure.get_label()


def test_without_test_images_the_held_out_scores_are_drawn(tmp_path: Path) -> None:
    split, maps = weave_split(0)
    evaluated = write(tmp_path / "evaluation.npz", split, maps, np.zeros(0), THRESHOLDS)
    drawn = draw(evaluated, STORED, ROW, [])
    assert list(drawn) == ["scores"]
    (counts, edges, _) = drawn["scores"].axes[0].patches[0].get_data()
    scores = STORED.normal.scores
    np.testing.assert_allclose(counts, 100 * np.histogram(scores, edges)[0] / len(scores))
    assert (edges[0], edges[-1]) == (scores.min(), scores.max())
    assert drawn["scores"].get_label() == "Image scores: held out (12), threshold at 1.5"
    trained_on = STORED._replace(normal=STORED.normal._replace(is_held_out=False))
    trained_on = trained_on._replace(thresholds=THRESHOLDS._replace(image_threshold=None))
    assert draw(evaluated, trained_on, ROW, []) == {}


def test_scores_that_hardly_differ_are_drawn(evaluated: Evaluated) -> None:
    scores = np.full(10, 0.5, np.float32)
    scores[evaluated.labels] = np.nextafter(np.float32(0.5), np.float32(1))
    figure = draw(evaluated._replace(scores=scores), None, ROW, [])["scores"]
    shares = [patch.get_data().values for patch in figure.axes[0].patches]
    assert [values.argmax() for values in shares] == [0, 0, 6, 6]


def test_figures_without_data_are_not_drawn(tmp_path: Path) -> None:
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
    write_figures(place, ROW)
    assert not list(old.parent.iterdir())
    Path(f"{place.folder / 'metrics.jsonl'}-moved").rename(place.folder / "metrics.jsonl")
    write_figures(place, ROW)
    assert {path.name for path in old.parent.iterdir()} == {
        f"a.b-loss.{kind}" for kind in ("svg", "png", "pdf")
    }
    for path in old.parent.iterdir():
        assert path.read_bytes() == (drawn_run / "figures" / path.name).read_bytes()


def test_an_inline_figure_has_the_colours_of_the_page_and_ids_of_its_own(drawn_run: Path) -> None:
    drawn = inline_figures(place_of(drawn_run, "a.b"), "7")
    assert len(drawn) == 4
    for name, svg in zip(NAMES, drawn, strict=True):
        element = ElementTree.fromstring(svg)
        assert element.get("role") == "img"
        assert ("AUPRO 98.76 %" in element.get("aria-label", "")) == (name == "pro")
        assert "var(--ink)" in svg
        assert "<title>" not in svg
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()
        ids = set(re.findall(r'\bid="([^"]+)"', svg))
        assert all(each.startswith(f"7-{name}-") for each in ids)
        assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= ids
        assert set(re.findall(r'href="#([^"]+)"', svg)) <= ids


def test_figures_that_are_not_there_or_not_whole_are_not_shown(
    tmp_path: Path, drawn_run: Path
) -> None:
    place, kept = place_of(tmp_path, "a.b"), Workdir(tmp_path).figures
    assert inline_figures(place, "0") == []
    shutil.copytree(drawn_run / "figures", kept)
    (kept / "a.b-pro.svg").write_bytes((kept / "a.b-pro.svg").read_bytes()[:-500])
    (kept / "a.b-loss.svg").unlink()
    labels = [ElementTree.fromstring(svg).get("aria-label") for svg in inline_figures(place, "0")]
    assert [str(label).split(":")[0] for label in labels] == ["ROC curves", "Image scores"]
