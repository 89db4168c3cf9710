import base64
import hashlib
import os
import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

from rd_jax.report import predictions
from rd_jax.report.predictions import Shown, with_rows, write_predictions
from rd_jax.store.rows import Row
from tests.report.evaluated import THRESHOLDS


def row(name: str, score: float | None, error: str | None = None) -> Row:
    verdict = None if score is None else "anomalous" if score > 1.5 else "normal"
    heatmap = None if score is None else f"heatmaps/{name}_heatmap.png"
    regions = [{}] * 2 if verdict == "anomalous" else []
    threshold = None if score is None else THRESHOLDS.image_threshold
    known = {"score": score, "verdict": verdict, "heatmap": heatmap, "regions": regions}
    known["threshold"] = threshold
    return {"file": f"parts/{name}.jpg", "error": error, **known}


def page_of(folder: Path, shown: Shown) -> str:
    write_predictions(folder, shown, THRESHOLDS)
    return (folder / "index.html").read_text(encoding="utf-8")


def test_the_page_links_to_what_was_written_highest_scores_first(tmp_path: Path) -> None:
    names = ["a", "x/b", "x/100% <b>", os.fsdecode(b"\xff")]
    shown = with_rows(Shown(), [row(name, i) for i, name in enumerate(names)])
    shown = with_rows(shown, [row("broken", None, "no <image>")])
    page = page_of(tmp_path, shown)
    links = re.findall(r'<a href="([^"]+)"><img loading="lazy" src="\1"', page)
    written = [unquote_to_bytes(unescape(link)) for link in links]
    assert written == [os.fsencode(f"heatmaps/{name}_heatmap.png") for name in names[::-1]]
    shown_names = re.findall(r"<figcaption>(.*?)<br>([\d.]+) <b>(\w+)</b>(.*?)</fig", page)
    assert [unescape(name) for name, *_ in shown_names] == [
        *(r"\udcff.jpg", "x/100% <b>.jpg", "x/b.jpg", "a.jpg"),
    ]
    assert [rest for _, *rest in shown_names] == [
        ["3", "anomalous", ", 2 regions"],
        ["2", "anomalous", ", 2 regions"],
        ["1", "normal", ""],
        ["0", "normal", ""],
    ]
    assert "2 of 4 images are anomalous; 1 could not be read or written." in page
    assert "<li>parts/broken.jpg: no &lt;image&gt;</li>" in page


def test_verdicts_of_earlier_thresholds_are_told_apart(tmp_path: Path) -> None:
    rows = [row(name, i) for i, name in enumerate("abc")]
    assert "earlier threshold" not in page_of(tmp_path, with_rows(Shown(), rows))
    for now, threshold in zip(rows, (0.25, 1.25, 1.5), strict=True):
        now["threshold"] = threshold
    page = page_of(tmp_path, with_rows(with_rows(Shown(), rows[:1]), rows[1:]))
    assert "an earlier threshold. It stands beside their verdict: 0.25, 1.25.</p>" in page
    assert re.findall(r"</b>(.*?)</fig", page) == [", 2 regions", " by 1.25", " by 0.25"]


def test_a_page_of_any_number_of_rows_is_bounded_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "_MOST", 3)
    monkeypatch.setattr(predictions, "_MOST_FAILED", 2)
    shown = Shown()
    for i in range(5):
        rows = [row(f"{i}{k}", (7 * (3 * i + k)) % 15) for k in range(3)]
        shown = with_rows(shown, [*rows, row(f"broken{i}", None, "broken")])
    page = page_of(tmp_path, shown)
    assert re.findall(r'data-score="(\d+)"', page) == ["14", "13", "12"]
    assert "The page shows the 3 highest scores. All 15 are in predictions.csv." in page
    assert "The first 2 of 5. All of them are in predictions.csv." in page
    assert "13 of 15 images are anomalous; 5 could not be read" in page


def test_only_the_page_s_own_script_may_run(tmp_path: Path) -> None:
    page = page_of(tmp_path, Shown())
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    (allowed,) = re.findall(r"script-src 'sha256-(.*?)'", page)
    assert allowed == base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "0 of 0 images are anomalous." in page
