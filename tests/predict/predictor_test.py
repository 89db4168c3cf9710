import itertools
import logging
import multiprocessing
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image, ImageFile

from rd_jax import auroc, make_scorer
from rd_jax.data.decode import decode_image
from rd_jax.data.headers import FORMAT_NAMES
from rd_jax.predict import predictor as predictor_module
from rd_jax.predict.predictor import (
    Prediction,
    Predictor,
    Unreadable,
    folded,
    load_predictor,
    score_arrays,
    score_files,
)
from rd_jax.run.trained import load_trained
from rd_jax.system.errors import UserError
from tests.reference_weights import draw_images
from tests.trained import SIZE, draw_maps, save_training


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """13 images of different sizes."""
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{i:02}.png" for i in range(13)]
    for i, (path, image) in enumerate(zip(paths, draw_images(13, 60), strict=True)):
        Image.fromarray(image[: 40 + i, : 60 - i]).save(path)
    return paths


@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_results_equal_the_scorers_on_the_same_decoded_images(
    training: Path, predictor: Predictor, paths: list[Path], batch_size: int
) -> None:
    results = list(score_files(predictor, paths, batch_size))
    images = np.stack([decode_image(path, (SIZE, SIZE))[0] for path in paths])
    trained = load_trained(training)
    scorer = make_scorer(trained.model)
    maps, scores = scorer(trained.teacher.variables, trained.checkpoint.student_variables, images)
    assert [result.path for result in results] == paths
    np.testing.assert_allclose([result.score for result in results], scores, atol=1e-5)
    np.testing.assert_allclose([result.anomaly_map for result in results], maps, atol=1e-5)


@pytest.mark.parametrize(("num_images", "computed"), [(1, 4), (3, 4), (5, 8), (13, 16)])
def test_no_more_images_are_computed_than_the_devices_take_at_once(
    predictor: Predictor, paths: list[Path], num_images: int, computed: int
) -> None:
    """There are four devices; of a power of two, each compiles once."""
    seen = []

    def score(images: Any) -> Any:
        seen.append(images.shape[0])
        return predictor.score(images)

    expected = list(score_files(predictor, paths, 16))[:num_images]
    results = list(score_files(predictor._replace(score=score), paths[:num_images], 16))
    assert seen == [computed]
    np.testing.assert_allclose(
        [result.score for result in results], [result.score for result in expected], atol=1e-5
    )


def test_images_are_held_if_asked_for_and_not_very_large(
    predictor: Predictor, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(result.image is None for result in score_files(predictor, paths))
    monkeypatch.setattr(predictor_module, "_MOST_HELD", 3 * 45 * 55)
    for result in score_files(predictor, paths, hold_images=True):
        decoded = np.asarray(Image.open(result.path))
        if decoded.nbytes > 3 * 45 * 55:
            assert result.image is None
        else:
            np.testing.assert_array_equal(result.image, decoded)


def test_files_that_cannot_be_read_keep_their_place(
    predictor: Predictor, paths: list[Path], tmp_path: Path
) -> None:
    text, cut, absent = tmp_path / "text.png", tmp_path / "cut.png", tmp_path / "absent.png"
    text.write_text("no image")
    cut.write_bytes(paths[0].read_bytes()[:300])
    given = [text, *paths[:3], cut, absent, *paths[3:]]
    results = list(score_files(predictor, given, 3))
    assert [result.path for result in results] == given
    failures = {r.path: r.reason for r in results if isinstance(r, Unreadable)}
    assert list(failures) == [text, cut, absent]
    reason = f"not an image in {FORMAT_NAMES}"
    assert failures[text] == reason
    assert "\n" not in "".join(failures.values())
    whole = {r.path: r.score for r in results if isinstance(r, Prediction)}
    expected = {r.path: r.score for r in score_files(predictor, paths, 3)}
    assert whole == pytest.approx(expected, abs=1e-5)
    assert list(score_files(predictor, [text] * 5, 2)) == [(text, reason)] * 5
    assert list(score_files(predictor, [], 2)) == []


def test_images_of_few_bits_in_16_are_warned_of_once(
    predictor: Predictor, paths: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dark = [tmp_path / "1.png", tmp_path / "2.png"]
    for path in dark:
        Image.fromarray(np.full((9, 9), 4095, np.uint16)).save(path)
    list(score_files(predictor, [*paths[:3], *dark], 2))
    assert caplog.text.count("16 bits") == 1
    assert "2 of 5 images have 16 bits and no value above a quarter of white" in caplog.text
    assert f"{dark[0]}, {dark[1]}" in caplog.text


def test_images_without_end_take_the_memory_of_a_few_batches(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, alive, most = threading.Lock(), 0, 0

    def count(change: int) -> None:
        nonlocal alive, most
        with lock:
            alive += change
            most = max(most, alive)

    @contextmanager
    def no_file(*_: object) -> Iterator[Image.Image]:
        yield Image.new("RGB", (1, 1))

    def decode(_: Image.Image, size: tuple[int, int], __: str) -> tuple[np.ndarray, tuple]:
        image = np.zeros((*size, 3), np.uint8)
        count(1)
        weakref.finalize(image, count, -1)
        return image, (0, 0, *size)

    monkeypatch.setattr(predictor_module, "reading", no_file)
    monkeypatch.setattr(predictor_module, "placed", decode)
    results = score_files(predictor, (Path(f"{i}.png") for i in itertools.count()), batch_size=8)
    names = [result.path.stem for result in itertools.islice(results, 200)]
    assert names == [str(i) for i in range(200)]
    results.close()
    assert most <= 4 * 8 + 1


def test_a_training_that_diverged_scores_nothing(predictor: Predictor, paths: list[Path]) -> None:
    broken = predictor._replace(score=lambda _: (np.zeros((8, SIZE, SIZE)), np.full(8, np.nan)))
    with pytest.raises(UserError, match="diverged"):
        list(score_files(broken, paths, 8))


def test_a_result_comes_before_the_next_path_is_asked_for(
    predictor: Predictor, paths: list[Path]
) -> None:
    asked: list[Path] = []

    def arriving() -> Iterator[Path]:
        for path in paths:
            asked.append(path)
            yield path

    for count, result in enumerate(score_files(predictor, arriving(), batch_size=1), 1):
        assert asked == paths[:count]
        assert result.path == paths[count - 1]
    assert count == len(paths)


@pytest.mark.parametrize("threshold", [0.5, 0.49, None])
def test_only_scores_above_the_threshold_are_anomalous(
    predictor: Predictor, paths: list[Path], threshold: float | None
) -> None:
    def score(images: Any) -> Any:
        return np.zeros(images.shape[:3], np.float32), np.full(len(images), 0.5, np.float32)

    thresholds = predictor.thresholds._replace(image_threshold=threshold)
    (result,) = score_files(predictor._replace(score=score, thresholds=thresholds), paths[:1])
    assert isinstance(result, Prediction)
    assert result.is_anomalous is (None if threshold is None else threshold < 0.5)


def test_arrays_are_scored_as_files_are(predictor: Predictor, paths: list[Path]) -> None:
    images = np.stack([decode_image(path, (SIZE, SIZE))[0] for path in paths])
    maps, scores, anomalous = score_arrays(predictor, images)
    expected = list(score_files(predictor, paths))
    np.testing.assert_allclose(scores, [result.score for result in expected], atol=1e-5)
    np.testing.assert_allclose(maps, [result.anomaly_map for result in expected], atol=1e-5)
    threshold = predictor.thresholds.image_threshold
    assert anomalous is not None
    np.testing.assert_array_equal(anomalous, scores > threshold)
    maps, scores, _ = score_arrays(predictor, images[:0])
    assert (maps.shape, scores.shape) == ((0, SIZE, SIZE), (0,))
    without = predictor._replace(thresholds=predictor.thresholds._replace(image_threshold=None))
    assert score_arrays(without, images)[2] is None


IMAGES = np.zeros((2, SIZE, SIZE, 3), np.uint8)


@pytest.mark.parametrize(
    "images",
    [
        IMAGES / np.float32(255),
        IMAGES.astype(bool),
        IMAGES.astype(np.uint16),
        IMAGES[..., :1],
        IMAGES[..., 0],
        IMAGES[..., [0, 1, 2, 2]],
        IMAGES[:, :16],
        IMAGES[0],
        np.moveaxis(IMAGES, -1, 1),
        np.uint8(3),
        [],
    ],
    ids=lambda images: f"{np.asarray(images).dtype}-{np.shape(images)}",
)
def test_arrays_that_are_no_images_are_refused_in_one_line(
    predictor: Predictor, images: Any
) -> None:
    with pytest.raises(UserError, match=r"must be uint8 RGB \[N, 32, 32, 3\]") as error:
        score_arrays(predictor, images)
    found = np.asarray(images)
    assert f"images are {found.dtype} [{', '.join(map(str, found.shape))}]" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(90, 30), (20, 80), (50, 50), (1, 900)])
def test_by_fit_a_map_is_the_pictures_and_has_the_score_as_its_maximum(
    predictor: Predictor, tmp_path: Path, shape: tuple[int, int]
) -> None:
    pixels = draw_images(1, 900)[0][: shape[0], : shape[1]]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    predictor = predictor._replace(resize="fit")
    (result,) = score_files(predictor, [tmp_path / "a.png"])
    whole = decode_image(tmp_path / "a.png", (SIZE, SIZE), "fit")[0]
    (expected,), scores, _ = score_arrays(predictor, whole[None])
    assert isinstance(result, Prediction)
    assert result.score == pytest.approx(scores[0], abs=1e-5)
    assert result.score == pytest.approx(result.anomaly_map.max(), abs=1e-5)
    scale = SIZE / max(shape)
    assert result.anomaly_map.shape == tuple(max(1, round(scale * side)) for side in shape)
    height, width = result.anomaly_map.shape
    top, left = (SIZE - height) // 2, (SIZE - width) // 2
    inside = expected[top : top + height, left : left + width]
    assert (result.anomaly_map >= inside - 1e-5).all()


def test_by_fit_sums_of_maps_do_not_depend_on_the_shapes_of_pictures(
    predictor: Predictor, tmp_path: Path
) -> None:
    def score(images: Any) -> Any:  # each pixel's own, so that nothing else tells pictures apart
        maps = np.abs(np.asarray(images, np.float32)[..., 0] - 128)
        return maps, maps.sum((1, 2))

    levels, paths = [*range(18, 22), *range(24, 28)], []
    for level, (height, width) in itertools.product(levels, [(64, 128), (33, 1650), (50, 50)]):
        paths.append(tmp_path / f"{level}-{width}.png")
        Image.new("RGB", (width, height), (128 + level,) * 3).save(paths[-1])
    results = score_files(predictor._replace(score=score, resize="fit"), paths)
    scores = np.array([result.score for result in results])
    np.testing.assert_array_equal(scores, np.repeat(levels, 3) * SIZE**2)
    assert auroc(scores, np.repeat(levels, 3) > 22) == 1


def test_margins_are_folded_back_to_the_pixels_that_they_mirror() -> None:
    picture = np.array([[1, 2], [3, 4]], np.float32)
    mirrored = np.pad(picture, ((1, 1), (3, 0)), "symmetric")
    np.testing.assert_array_equal(folded(mirrored, (1, 3, 2, 2)), picture)
    mirrored[0, 2] = 9  # left of the first pixel, above the first row
    np.testing.assert_array_equal(folded(mirrored, (1, 3, 2, 2)), [[9, 2], [3, 4]])
    np.testing.assert_array_equal(folded(picture, (0, 0, 2, 2)), picture)


def test_rates_change_the_thresholds_and_nothing_else_can_be_changed(
    training: Path, predictor: Predictor
) -> None:
    rates = dict(false_positive_rate=0.2, pixel_false_positive_rate=0.05)
    thresholds = load_predictor(training, **rates).thresholds
    # 0.2 * 21 is 4 and a bit: the next image is the fourth above or lower, so 3 are above.
    maps = draw_maps(0)
    expected = np.sort(maps.max((1, 2)))[-4]
    assert thresholds.image_threshold == pytest.approx(expected, rel=1e-3)
    assert thresholds.kept_rate == 4 / 21
    assert thresholds.image_threshold < predictor.thresholds.image_threshold
    pixel = np.quantile(maps, 0.95)
    assert thresholds.pixel_threshold == pytest.approx(min(pixel, expected), rel=1e-2)
    for name, value in (("scales", (1,)), ("blur_sigma", 2.0), ("image_score", "sum")):
        with pytest.raises(UserError, match=name):
            load_predictor(training, **{name: value})


def state_of_process() -> tuple:
    """What a library must leave to its host."""
    loggers = [logging.getLogger(name) for name in (None, "absl", "rd_jax", "orbax", "jax")]
    levels = [(logger.level, logger.disabled, logger.handlers[:]) for logger in loggers]
    hooks = sys.unraisablehook, sys.excepthook, threading.excepthook
    on_signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    limits = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    return levels, hooks, on_signals, limits, dict(jax.config.values)


def test_loading_and_scoring_in_threads_leaves_the_process_as_it_was(
    training: Path, predictor: Predictor, paths: list[Path]
) -> None:
    expected = [result.score for result in score_files(predictor, paths[:3])]
    before = state_of_process()

    def scores(_: int) -> list[float]:
        return [result.score for result in score_files(load_predictor(training), paths[:3])]

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(scores, range(8)):
            assert found == pytest.approx(expected, abs=1e-6)
    assert before == state_of_process()


def score_of(training: Path, path: Path) -> float:
    """In a process that begins with nothing."""
    import tests.tiny  # noqa: F401

    (result,) = score_files(load_predictor(training), [path])
    return result.score


def test_a_spawned_worker_scores_after_its_parent_did(
    training: Path, predictor: Predictor, paths: list[Path]
) -> None:
    """As docs/library.md says; a forked one would hang in JAX's locks."""
    (expected,) = score_files(predictor, paths[:1])
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(score_of, training, paths[0]).result(100)
    assert found == pytest.approx(expected.score, abs=1e-5)


def test_a_training_without_thresholds_is_an_error(tmp_path: Path) -> None:
    unfinished = save_training(tmp_path / "a", None, last_step=53)
    with pytest.raises(UserError, match="no thresholds, after step 7 of 53: finish the training"):
        load_predictor(unfinished)
    finished = save_training(tmp_path / "b", None)
    with pytest.raises(UserError, match="after step 7 of 7: run python -m"):
        load_predictor(finished)
