import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rd_jax.report.gallery import (
    examples,
    informative,
    read_evaluation,
    small_map,
    thinned,
    wrongness,
)
from rd_jax.store.rows import write_arrays
from tests.report.evaluated import NUM_HELD_OUT, THRESHOLDS, weave_split, write

FILE = "evaluation.npz"


def pixels_of(file: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image)


def test_an_evaluation_is_read_as_it_was_written(tmp_path: Path) -> None:
    split, maps = weave_split(10)
    scores = maps.max((1, 2))
    read = write(tmp_path / FILE, split, maps, scores, THRESHOLDS)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert tuple(read.names) == split.test_names
    np.testing.assert_array_equal(read.scores, scores)
    np.testing.assert_array_equal(read.labels, split.labels)
    np.testing.assert_array_equal(read.size, [32, 32])
    assert sorted(read.shown) == list(range(10))
    for k, i in enumerate(read.shown):
        assert np.abs(pixels_of(read.images[k]).astype(int) - split.test[i]).mean() < 12  # of JPEG
        np.testing.assert_allclose(read.maps[k] * read.map_unit, maps[i], atol=maps.max() / 4000)
        np.testing.assert_array_equal(pixels_of(read.masks[k]), 255 * split.masks[i])
    assert [*read.held_out_names] == [*split.train_names][::-1]
    for file, i in zip(read.held_out_images, (2, 1, 0), strict=True):
        assert np.abs(pixels_of(file).astype(int) - split.train[i]).mean() < 12
    assert len(read.held_out_maps) == len(read.held_out_scores) == NUM_HELD_OUT
    np.testing.assert_allclose(read.map_range, [np.median(maps), maps.max()], rtol=1e-4)
    assert read.pro[-1, 0] == pytest.approx(0.3)


def test_a_folder_without_an_evaluation_has_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_evaluation(tmp_path / FILE) is None
    assert not caplog.text


def test_an_evaluation_of_another_version_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_arrays(tmp_path / FILE, {"names": np.array(["a"]), "of_tomorrow": np.zeros(1)})
    assert read_evaluation(tmp_path / FILE) is None
    assert "evaluation.npz is left out, since it is of another version" in caplog.text


@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_an_evaluation_that_was_cut_short_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, share: float
) -> None:
    split, maps = weave_split(3)
    write(tmp_path / FILE, split, maps, maps.max((1, 2)), THRESHOLDS)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[: int(share * len(whole))])
    assert read_evaluation(tmp_path / FILE) is None
    assert "evaluation.npz is left out, since it cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("shape", "shown"), [((320, 320), (256, 256)), ((100, 400), (64, 256)), ((4, 2400), (1, 256))]
)
def test_large_images_become_thumbnails(
    tmp_path: Path, shape: tuple[int, int], shown: tuple[int, int]
) -> None:
    split, _ = weave_split(2)
    split = replace(
        split,
        train=np.zeros((3, *shape, 3), np.uint8),
        test=np.zeros((2, *shape, 3), np.uint8),
        masks=np.ones((2, *shape), bool),
    )
    maps = np.random.default_rng(0).random((2, *shape), np.float32)
    read = write(tmp_path / FILE, split, maps, maps.max((1, 2)), THRESHOLDS)
    assert tuple(read.size) == small_map(maps[0]).shape == shown
    assert read.maps.shape[1:] == read.held_out_maps.shape[1:] == shown
    for files in (read.images, read.held_out_images, read.masks):
        assert {pixels_of(file).shape[:2] for file in files} == {shown}


@pytest.mark.parametrize("count", [0, 1])
def test_without_both_classes_there_are_no_curves(tmp_path: Path, count: int) -> None:
    split, maps = weave_split(count)
    split = replace(split, masks=None)
    read = write(tmp_path / FILE, split, maps, maps.sum((1, 2)), None)
    assert len(read.shown) == len(read.images) == len(read.maps) == count
    assert len(read.image_roc) == len(read.pixel_roc) == len(read.pro) == len(read.masks) == 0


def test_the_worst_of_many_images_and_some_others_are_kept(tmp_path: Path) -> None:
    split, maps = weave_split(200)
    scores = np.random.default_rng(1).normal(1.5, 1, 200).astype(np.float32)
    read = write(tmp_path / FILE, split, maps, scores, THRESHOLDS)
    assert len(set(read.shown)) == len(read.shown) >= 120
    wrong = wrongness(scores, split.labels, THRESHOLDS)
    worst_first = np.argsort(-wrong)
    np.testing.assert_array_equal(read.shown[:60], worst_first[:60])
    places = np.flatnonzero(np.isin(worst_first, read.shown[60:120]))
    assert (len(places), places[0], places[-1]) == (60, 60, 199)
    assert np.diff(places).max() <= 3
    assert {*examples(split.test_names, split.labels, scores, wrong)} <= {*read.shown}


def test_examples_are_found_ones_with_the_highest_scores_and_all_kinds_come_first() -> None:
    names = [f"{kind}/{i}" for i in range(9) for kind in ("crack", "good", "hole", "dent")]
    labels = np.array(["good" not in name for name in names])
    scores = np.random.default_rng(0).uniform(0, 1, 36)
    scores[[name.startswith("dent") for name in names]] = 0  # none of them is found
    right = np.where(labels, 0.5 - scores, scores - 0.5)
    chosen = examples(names, labels, scores, right)
    kinds = [names[i].split("/")[0] for i in chosen]
    assert kinds[:2] == ["good", "good"]
    assert {*kinds[2:4]} == {*kinds[4:6]} == {*kinds[6:8]} == {*kinds[8:]} == {"crack", "hole"}
    assert scores[chosen[0]] == np.median(scores[~labels])
    assert scores[chosen[1]] == scores[~labels].max() > 0.5  # a false alarm
    for kind in ("crack", "hole"):
        of_kind = np.sort([s for s, name in zip(scores, names, strict=True) if kind in name])
        found = [scores[i] for i in chosen if kind in names[i]]
        np.testing.assert_array_equal(found, of_kind[:-5:-1])


def test_each_kind_that_was_found_has_an_example() -> None:
    names = [f"kind_{i % 20}/{i}" for i in range(60)]
    chosen = examples(names, np.ones(60, bool), np.arange(60), -np.ones(60))
    assert sorted(names[i].split("/")[0] for i in chosen) == sorted(
        {n.split("/")[0] for n in names}
    )


def test_nothing_found_gives_no_examples() -> None:
    nothing = np.zeros(0)
    assert examples([], nothing.astype(bool), nothing, nothing) == []
    assert examples(["bad/0"], np.ones(1, bool), np.zeros(1), np.ones(1)) == []


def test_one_good_image_is_median_and_worst_at_once() -> None:
    assert examples(["good/0"], np.zeros(1, bool), np.zeros(1), -np.ones(1)) == [0]


def test_errors_are_measured_from_the_threshold() -> None:
    scores, labels = np.array([1.0, 2.0, 1.0, 2.0]), np.array([True, True, False, False])
    np.testing.assert_allclose(wrongness(scores, labels, THRESHOLDS), [0.5, -0.5, -0.5, 0.5])


def test_without_a_threshold_as_many_images_are_called_anomalous_as_there_are() -> None:
    scores = np.array([0.1, 0.2, 0.9, 0.3, 0.6, 0.8], np.float32)
    labels = np.array([False, False, False, False, True, True])
    without = THRESHOLDS._replace(source="train", image_threshold=None)
    for thresholds in (None, without):
        wrong = wrongness(scores, labels, thresholds)
        np.testing.assert_allclose(wrong, [-0.7, -0.6, 0.1, -0.5, 0.2, 0.0], atol=1e-6)


@pytest.mark.parametrize("label", [False, True])
def test_a_single_class_is_ordered_by_score(label: bool) -> None:
    scores = np.array([0.1, 0.9, 0.5], np.float32)
    order = informative(wrongness(scores, np.full(3, label), None), 10)
    np.testing.assert_array_equal(order, [0, 2, 1] if label else [1, 2, 0])


def test_a_thinned_curve_keeps_its_ends_and_its_area() -> None:
    x = np.linspace(0, 1, 5000)
    points = np.stack([x, 1 - (1 - x) ** 8], 1)
    few = thinned(points)
    assert 200 < len(few) <= 300
    np.testing.assert_array_equal(few[[0, -1]], points[[0, -1]])
    assert np.trapezoid(few[:, 1], few[:, 0]) == pytest.approx(8 / 9, abs=1e-3)
    np.testing.assert_array_equal(thinned(points[:300]), points[:300])


def test_a_flat_curve_can_be_thinned() -> None:
    flat = np.stack([np.linspace(0, 1, 500), np.zeros(500)], 1)
    np.testing.assert_array_equal(thinned(flat)[[0, -1]], flat[[0, -1]])
