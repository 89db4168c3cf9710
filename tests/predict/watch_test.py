"""A folder that images arrive in, one look after the other; nothing here waits."""

import json
import os
import shutil
from collections.abc import Generator
from pathlib import Path

import pytest
from PIL import Image

from rd_jax.predict import watch as watch_module
from rd_jax.predict.outputs import FIELDS, Outputs
from rd_jax.predict.predictor import Predictor, score_files
from rd_jax.predict.tables import TABLES
from rd_jax.predict.watch import PATIENCE, watch
from rd_jax.store.rows import Row
from rd_jax.system.errors import UserError
from tests.reference_weights import draw_images

Watch = Generator[list[Row]]


@pytest.fixture
def arriving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder to watch, beside pictures 0.png to 3.png."""
    monkeypatch.chdir(tmp_path)
    for i, pixels in enumerate(draw_images(4, 40)):
        Image.fromarray(pixels).save(f"{i}.png")
    Path("in").mkdir()
    return Path("in")


@pytest.fixture
def outputs(predictor: Predictor, arriving: Path) -> Outputs:
    return Outputs(arriving / "out", predictor.thresholds, 10**6, "png", None, "sum", False)


def look(watching: Watch) -> list[Row]:
    """The rows of one look."""
    rows: list[Row] = []
    while batch := next(watching):
        rows += batch
    return rows


def files_of(rows: list[Row]) -> list[str]:
    return [row["file"] for row in rows]


def test_an_image_is_scored_when_it_stays_as_it_is(
    predictor: Predictor, arriving: Path, outputs: Outputs
) -> None:
    whole = Path("0.png").read_bytes()
    watching = watch(predictor, arriving, outputs, 2)
    assert look(watching) == []
    for end in (0, 40, 300, len(whole)):  # a file that is copied slowly
        (arriving / "slow.png").write_bytes(whole[:end])
        assert look(watching) == []
    (arriving / "b").mkdir()
    for name in ("a.png", "b/c.png", "notes.txt"):
        shutil.copy("1.png", arriving / name)
    assert files_of(look(watching)) == ["in/slow.png"]
    rows = look(watching)
    assert files_of(rows) == ["in/a.png", "in/b/c.png"]
    assert look(watching) == look(watching) == []
    (result,) = score_files(predictor, ["1.png"])
    for row in rows:
        assert row["score"] == pytest.approx(result.score, abs=1e-5)
    assert rows[1]["heatmap"] == "heatmaps/b/c_heatmap.png"
    assert (outputs.folder / "heatmaps/b/c_heatmap.png").is_file()
    assert "of 3 images" in (outputs.folder / "index.html").read_text()
    watching.close()


def test_vanished_or_unreadable_images_do_not_stop_the_rest(
    predictor: Predictor, arriving: Path, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = watch(predictor, arriving, outputs, 2)
    (arriving / "gone").mkdir()
    for name in ("1.png", "2.png", "gone/1.png", "gone/2.png"):
        shutil.copy(Path(name).name, arriving / name)
    (arriving / "half.png").write_bytes(Path("0.png").read_bytes()[:200])
    assert look(watching) == []
    shutil.rmtree(arriving / "gone")
    scored = watch_module.score_files

    def after_deletion(predictor: Predictor, paths: list[Path], *args: object) -> object:
        """Another program takes an image away between look and read."""
        (arriving / "2.png").unlink(missing_ok=True)
        return scored(predictor, paths, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(watch_module, "score_files", after_deletion)
    assert files_of(look(watching)) == ["in/1.png"]
    before_last = [look(watching) for _ in range(PATIENCE - 2)]
    assert before_last == [[]] * (PATIENCE - 2)
    (row,) = look(watching)
    assert row["file"] == "in/half.png"
    assert row["error"]
    assert row["score"] is None
    shutil.copy("0.png", arriving / "half.png")  # now it is whole
    assert look(watching) == []
    (row,) = look(watching)
    assert (row["file"], row["error"]) == ("in/half.png", None)
    watching.close()


def test_a_folder_that_is_away_for_a_while_is_logged_once(
    predictor: Predictor, arriving: Path, outputs: Outputs, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = outputs._replace(folder=Path("out"))
    watching = watch(predictor, arriving, outputs, 2)
    shutil.copy("0.png", arriving)
    look(watching)
    arriving.rename("elsewhere")
    assert look(watching) == look(watching) == []
    assert caplog.text.count("in cannot be read") == 1
    Path("elsewhere").rename(arriving)
    assert look(watching) == []
    assert files_of(look(watching)) == ["in/0.png"]
    watching.close()


def test_a_restart_goes_on_and_keeps_what_there_is(
    predictor: Predictor, arriving: Path, outputs: Outputs
) -> None:
    for i in (0, 1):
        shutil.copy(f"{i}.png", arriving)
    watching = watch(predictor, arriving, outputs, 2)
    look(watching)
    first = next(watching)  # of a look that is not over
    watching.close()
    before = {path: path.read_bytes() for path in outputs.folder.rglob("*.png")}
    assert len(before) == 2
    lines = [(outputs.folder / name).read_bytes() for name in TABLES]
    # A killed run left an overlay without a row.
    (outputs.folder / "heatmaps/2_heatmap.png").write_bytes(b"half")
    for i in (2, 3):
        shutil.copy(f"{i}.png", arriving)
    shutil.copy("3.png", arriving / "0.png")  # another picture of the same name
    os.utime(arriving / "0.png", (1, 1))
    watching = watch(predictor, arriving.absolute(), outputs, 2)
    assert look(watching) == []
    second = look(watching)
    assert files_of(second) == [str(arriving.absolute() / f"{i}.png") for i in (0, 2, 3)]
    assert look(watching) == []
    watching.close()
    assert {path: path.read_bytes() for path in before} == before
    for name, start in zip(TABLES, lines, strict=True):
        assert (outputs.folder / name).read_bytes().startswith(start)
    rows = [json.loads(line) for line in (outputs.folder / TABLES[1]).read_text().splitlines()]
    assert rows == first + second
    assert all(tuple(row) == (*FIELDS, "bytes", "modified") for row in rows)
    assert [row["error"] for row in rows] == [None] * 5
    heatmaps = [row["heatmap"] for row in rows]
    assert len(set(heatmaps)) == 5
    assert heatmaps[2] == "heatmaps/0.png_heatmap.png"
    assert (outputs.folder / "heatmaps/2_heatmap.png").read_bytes() != b"half"


def test_outputs_are_not_watched_and_one_process_writes(
    predictor: Predictor, arriving: Path, outputs: Outputs
) -> None:
    shutil.copy("0.png", arriving)
    watching = watch(predictor, arriving, outputs, 2)
    assert [files_of(look(watching)) for _ in range(4)] == [[], ["in/0.png"], [], []]
    with pytest.raises(UserError, match="another process writes predictions there"):
        next(watch(predictor, arriving, outputs, 2))
    with pytest.raises(UserError, match="is where outputs are written"):
        next(watch(predictor, outputs.folder / "heatmaps", outputs, 2))
    watching.close()
