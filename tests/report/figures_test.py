import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from PIL import Image

from rd_jax.report.figures import draw, inline_svg, write_figures
from rd_jax.report.gallery import Evaluation, read_evaluation
from tests.report.gallery_test import CALIBRATION, FILE, weave_split, write

ROW = {"image_auroc": 0.9876, "pixel_auroc": 0.95, "aupro": 0.9}
LOSSES = [{"step": 1, "loss": 2.0}, {"step": 1, "image_auroc": 0.5}, {"step": 2, "loss": 1.0}]


def evaluation_in(folder: Path) -> Evaluation:
    split, maps = weave_split(10)
    write(folder / FILE, split, maps, maps.max((1, 2)), CALIBRATION)
    evaluation = read_evaluation(folder / FILE)
    assert evaluation is not None
    return evaluation


def test_the_curves_are_drawn_as_they_are(tmp_path: Path) -> None:
    evaluation = evaluation_in(tmp_path)
    drawn = draw(evaluation, ROW, LOSSES)
    assert list(drawn) == ["roc", "pro", "scores", "loss"]
    lines = [figure.axes[0].lines for figure, _ in drawn.values()]
    np.testing.assert_allclose(lines[0][1].get_xydata(), evaluation.image_roc)
    np.testing.assert_allclose(lines[0][2].get_xydata(), evaluation.pixel_roc)
    np.testing.assert_allclose(lines[1][0].get_xydata(), evaluation.pro)
    assert lines[2][0].get_xdata()[0] == CALIBRATION.image_threshold
    np.testing.assert_allclose(lines[3][0].get_xydata(), [(1, 2), (2, 1)])
    assert "image AUROC 98.76 %" in drawn["roc"][1]


def test_every_image_is_in_the_histogram(tmp_path: Path) -> None:
    (figure, says) = draw(evaluation_in(tmp_path), ROW, [])["scores"]
    shares = [patch.get_data().values.sum() for patch in figure.axes[0].patches]
    np.testing.assert_allclose(shares, 100)
    assert "normal (2), anomalous (8)" in says


def test_scores_that_hardly_differ_are_drawn(tmp_path: Path) -> None:
    evaluation = evaluation_in(tmp_path)
    scores = np.full(10, 0.5, np.float32)
    scores[evaluation.labels] = np.nextafter(np.float32(0.5), np.float32(1))
    (figure, _) = draw(evaluation._replace(scores=scores), ROW, [])["scores"]
    shares = [patch.get_data().values for patch in figure.axes[0].patches]
    assert [values.argmax() for values in shares] == [0, 0, 29, 29]


def test_what_is_not_there_is_not_drawn(tmp_path: Path) -> None:
    assert draw(None, ROW, []) == {}
    assert list(draw(None, ROW, LOSSES)) == ["loss"]
    split, maps = weave_split(1)
    write(tmp_path / FILE, split._replace(masks=None), maps, maps.max((1, 2)), None)
    assert list(draw(read_evaluation(tmp_path / FILE), ROW, [])) == ["scores"]


def test_files_for_papers_are_written_without_a_trace_in_matplotlib(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    drawn = draw(evaluation_in(tmp_path), ROW, LOSSES)
    write_figures(drawn, tmp_path / "figures" / "a.b")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {f"a.b-{name}.{kind}" for name in drawn for kind in ("png", "pdf")}
    with Image.open(tmp_path / "figures" / "a.b-roc.png") as image:
        assert image.size == (1080, 810)
    first = (tmp_path / "figures" / "a.b-roc.pdf").read_bytes()
    assert first.startswith(b"%PDF")
    write_figures(drawn, tmp_path / "figures" / "a.b")
    assert (tmp_path / "figures" / "a.b-roc.pdf").read_bytes() == first
    assert dict(mpl.rcParams) == before


def test_figures_are_the_same_whatever_a_matplotlibrc_says(tmp_path: Path) -> None:
    evaluation = evaluation_in(tmp_path)

    def svg() -> str:
        return inline_svg(draw(evaluation, ROW, LOSSES)["roc"][0], "roc")

    expected = svg()
    odd = {"axes.facecolor": "red", "font.family": "serif", "savefig.bbox": "tight"}
    with mpl.rc_context({**odd, "text.usetex": True}):
        assert svg() == expected


def test_an_inline_svg_has_the_colours_of_the_page_and_ids_of_its_own(tmp_path: Path) -> None:
    for name, (figure, _) in draw(evaluation_in(tmp_path), ROW, LOSSES).items():
        svg = inline_svg(figure, f"{name}-0")
        ElementTree.fromstring(svg)
        assert "var(--ink)" in svg
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()
        ids = set(re.findall(r'\bid="([^"]+)"', svg))
        assert all(each.startswith(f"{name}-0-") for each in ids)
        assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= ids
        assert set(re.findall(r'href="#([^"]+)"', svg)) <= ids
