from pathlib import Path

import numpy as np
import pytest

from rd_jax.data import Split
from rd_jax.data.synthetic import DEFECTS, weave
from rd_jax.method.calibration import Calibration
from rd_jax.method.counts import counted, no_pixels
from rd_jax.method.metrics import Scored, sums_and_maxima
from rd_jax.report.gallery import (
    chosen,
    examples,
    informative,
    read_evaluation,
    small_map,
    write_evaluation,
    wrongness,
)
from rd_jax.store.arrays import write_arrays

FILE = "evaluation.npz"
CALIBRATION = Calibration("holdout", 12, 0.05, 1.5, 0.9, 0.1, 2.1, 1 / 13, 0.001, "float32")


def weave_split(count: int, size: int = 32) -> tuple[Split, np.ndarray]:
    """Every other image of the generated category is defective; its maps are drawn, not learnt."""
    rng = np.random.default_rng(0)
    kinds = [None, *DEFECTS]
    drawn = [weave(rng, size, kinds[i % len(kinds)]) for i in range(count)]
    images = np.array([image for image, _ in drawn], np.uint8).reshape(-1, size, size, 3)
    masks = np.array([mask for _, mask in drawn], bool).reshape(-1, size, size)
    labels = np.array([i % len(kinds) > 0 for i in range(count)], bool)
    names = [f"{kinds[i % len(kinds)] or 'good'}/{i:03}.png" for i in range(count)]
    maps = (0.5 * masks + rng.gamma(2, 0.2, masks.shape)).astype(np.float32)
    return Split("weave", images[:0], [], "", images, names, "", labels, masks), maps


def write(
    path: Path, split: Split, maps: np.ndarray, scores: np.ndarray, calibration: Calibration | None
) -> None:
    """`write_evaluation` of maps and scores of all test images."""
    masks = np.zeros(maps.shape, bool) if split.masks is None else split.masks
    found = Scored(scores, *sums_and_maxima(maps), counted(no_pixels(), maps, masks))
    shown = chosen(split, scores, calibration)
    write_evaluation(path, split, found, shown, [*map(small_map, maps[shown])], calibration)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    split, maps = weave_split(10)
    scores = maps.max((1, 2))
    write(tmp_path / FILE, split, maps, scores, CALIBRATION)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    read = read_evaluation(tmp_path / FILE)
    assert read is not None
    assert list(read.names) == split.test_names
    np.testing.assert_array_equal(read.scores, scores)
    np.testing.assert_array_equal(read.labels, split.labels)
    assert read.calibration == CALIBRATION
    np.testing.assert_array_equal(read.images, split.test[read.shown])
    np.testing.assert_array_equal(read.masks, 255 * split.masks[read.shown])
    expected = np.clip((maps[read.shown] - 0.1) / 2, 0, 1) * 255
    np.testing.assert_allclose(read.strengths, expected, atol=1.01)
    assert read.pro[-1, 0] == pytest.approx(0.3)


def test_a_folder_without_an_evaluation_has_none(tmp_path: Path) -> None:
    assert read_evaluation(tmp_path / FILE) is None


def test_an_evaluation_of_another_version_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_arrays(tmp_path / FILE, {"calibration": np.array("null"), "of_tomorrow": np.zeros(1)})
    assert read_evaluation(tmp_path / FILE) is None
    assert "evaluation.npz is left out, since it is of another version" in caplog.text


def test_without_a_calibration_the_maps_set_the_scale(tmp_path: Path) -> None:
    split, maps = weave_split(4)
    write(tmp_path / FILE, split, maps, maps.max((1, 2)), None)
    read = read_evaluation(tmp_path / FILE)
    assert read is not None
    assert read.calibration is None
    np.testing.assert_allclose(read.map_range, [np.median(maps), maps.max()], rtol=1e-4)
    assert read.strengths.max() == 254  # nothing is above a threshold that there is not


def test_large_images_become_thumbnails(tmp_path: Path) -> None:
    split, maps = weave_split(2, size=224)
    write(tmp_path / FILE, split, maps, maps.max((1, 2)), CALIBRATION)
    read = read_evaluation(tmp_path / FILE)
    assert read is not None
    assert read.images.shape == (2, 192, 192, 3)
    assert read.strengths.shape == read.masks.shape == (2, 192, 192)


@pytest.mark.parametrize("count", [0, 1])
def test_without_both_classes_there_are_no_curves(tmp_path: Path, count: int) -> None:
    split, maps = weave_split(count)
    split = split._replace(masks=None)
    write(tmp_path / FILE, split, maps, maps.sum((1, 2)), None)
    read = read_evaluation(tmp_path / FILE)
    assert read is not None
    assert len(read.shown) == len(read.images) == count
    assert len(read.image_roc) == len(read.pixel_roc) == len(read.pro) == len(read.masks) == 0


def test_of_many_images_the_worst_and_some_of_all_scores_are_kept(tmp_path: Path) -> None:
    split, maps = weave_split(200)
    scores = np.random.default_rng(1).normal(1.5, 1, 200).astype(np.float32)
    write(tmp_path / FILE, split, maps, scores, CALIBRATION)
    read = read_evaluation(tmp_path / FILE)
    assert read is not None
    assert len(set(read.shown)) == len(read.shown) >= 120
    wrong = wrongness(scores, split.labels, CALIBRATION)
    worst_first = np.argsort(-wrong)
    np.testing.assert_array_equal(read.shown[:60], worst_first[:60])
    rest = np.sort(scores[worst_first[60:]])
    kept = np.sort(scores[read.shown[60:120]])
    assert (kept[0], kept[-1]) == (rest[0], rest[-1])
    assert np.diff(np.searchsorted(rest, kept)).max() <= 3
    assert {*examples(split.test_names, split.labels, scores, wrong)} <= {*read.shown}


def test_examples_are_found_ones_with_the_highest_scores_and_all_kinds_come_first() -> None:
    names = [f"{kind}/{i}" for i in range(9) for kind in ("crack", "good", "hole", "dent")]
    labels = np.array(["good" not in name for name in names])
    scores = np.random.default_rng(0).uniform(0, 1, 36)
    scores[[name.startswith("dent") for name in names]] = 0  # none of them is found
    right = np.where(labels, 0.5 - scores, scores - 0.5)
    chosen = examples(names, labels, scores, right)
    kinds = [names[i].split("/")[0] for i in chosen]
    assert kinds == ["good", *["crack", "hole"] * (len(chosen) // 2)]
    assert len(chosen) == 9
    normal = np.sort(scores[~labels & (scores <= 0.5)])
    assert scores[chosen[0]] == normal[len(normal) // 2]
    for k, kind in ((1, "crack"), (2, "hole")):
        of_kind = np.sort([s for s, name in zip(scores, names, strict=True) if kind in name])
        np.testing.assert_array_equal(scores[chosen[k::2]], of_kind[:-5:-1])


def test_nothing_found_gives_no_examples() -> None:
    nothing = np.zeros(0)
    assert examples([], nothing.astype(bool), nothing, nothing).size == 0
    assert examples(["bad/0"], np.ones(1, bool), np.zeros(1), np.ones(1)).size == 0


def test_errors_are_measured_from_the_threshold_of_the_calibration() -> None:
    scores, labels = np.array([1.0, 2.0, 1.0, 2.0]), np.array([True, True, False, False])
    np.testing.assert_allclose(wrongness(scores, labels, CALIBRATION), [0.5, -0.5, -0.5, 0.5])


def test_without_a_threshold_errors_are_measured_from_that_of_the_best_f1() -> None:
    scores = np.array([0.1, 0.2, 0.9, 0.3, 0.6, 0.8], np.float32)
    labels = np.array([False, False, False, False, True, True])
    uncalibrated = CALIBRATION._replace(source="train", image_threshold=None)
    for calibration in (None, uncalibrated):
        wrong = wrongness(scores, labels, calibration)
        np.testing.assert_allclose(wrong, [-0.5, -0.4, 0.3, -0.3, 0.0, -0.2], atol=1e-6)


@pytest.mark.parametrize("label", [False, True])
def test_a_single_class_is_ordered_by_score(label: bool) -> None:
    scores = np.array([0.1, 0.9, 0.5], np.float32)
    order = informative(wrongness(scores, np.full(3, label), None), scores, 10)
    np.testing.assert_array_equal(order, [0, 2, 1] if label else [1, 2, 0])
