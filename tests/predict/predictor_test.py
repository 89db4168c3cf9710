import itertools
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from rd_jax.data.decode import decode_image
from rd_jax.data.formats import FORMAT_NAMES
from rd_jax.predict import predictor as predictor_module
from rd_jax.predict.predictor import (
    Prediction,
    Predictor,
    Unreadable,
    load_predictor,
    score_files,
)
from rd_jax.run.build import scorer_of
from rd_jax.run.trained import find_training
from rd_jax.store.distances import NormalDistances, write_distances
from rd_jax.system.errors import UserError
from tests.reference_weights import draw_images
from tests.trained import SIZE, draw_distances, save_training


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_training(tmp_path_factory.mktemp("run") / "weave")


@pytest.fixture(scope="module")
def predictor(training: Path) -> Predictor:
    return load_predictor(training)


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
    predictor: Predictor, paths: list[Path], batch_size: int
) -> None:
    results = list(score_files(predictor, paths, batch_size))
    images = np.stack([decode_image(path, SIZE)[0] for path in paths])
    scorer = scorer_of(predictor.config)
    maps, scores = scorer(*predictor.variables, images)
    assert [result.path for result in results] == paths
    np.testing.assert_allclose([result.score for result in results], scores, atol=1e-5)
    np.testing.assert_allclose([result.anomaly_map for result in results], maps, atol=1e-5)


@pytest.mark.parametrize(("num_images", "computed"), [(1, 4), (3, 4), (5, 8), (13, 16)])
def test_no_more_images_are_computed_than_the_devices_take_at_once(
    predictor: Predictor, paths: list[Path], num_images: int, computed: int
) -> None:
    """There are four devices; of a power of two, each compiles once."""
    seen = []

    def scorer(*arguments: Any) -> Any:
        seen.append(arguments[-1].shape[0])
        return predictor.scorer(*arguments)

    expected = list(score_files(predictor, paths, 16))[:num_images]
    results = list(score_files(predictor._replace(scorer=scorer), paths[:num_images], 16))
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
    assert (
        f"2 of 5 images have 16 bits and no value above a quarter of white, e.g. {dark[0]}: "
        in (caplog.text)
    )


def test_images_without_end_take_the_memory_of_four_batches(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, alive, most = threading.Lock(), 0, 0

    def count(change: int) -> None:
        nonlocal alive, most
        with lock:
            alive += change
            most = max(most, alive)

    def decode(_: Image.Image, size: tuple[int, int], __: str) -> tuple[np.ndarray, tuple]:
        image = np.zeros((*size, 3), np.uint8)
        count(1)
        weakref.finalize(image, count, -1)
        return image, (0, 0, *size)

    monkeypatch.setattr(predictor_module, "read_image", lambda *_: Image.new("RGB", (1, 1)))
    monkeypatch.setattr(predictor_module, "placed", decode)
    results = score_files(predictor, (Path(f"{i}.png") for i in itertools.count()), batch_size=8)
    names = [result.path.stem for result in itertools.islice(results, 200)]
    assert names == [str(i) for i in range(200)]
    results.close()
    assert most <= 4 * 8 + 1


def test_a_training_that_diverged_scores_nothing(predictor: Predictor, paths: list[Path]) -> None:
    broken = predictor._replace(scorer=lambda *_: (np.zeros((8, SIZE, SIZE)), np.full(8, np.nan)))
    with pytest.raises(UserError, match="diverged"):
        list(score_files(broken, paths, 8))


def maps_of(distances: tuple[np.ndarray, ...], sigma: float) -> np.ndarray:
    """Upsampled by PyTorch, summed, blurred by SciPy."""
    torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
    total = sum(
        torch.nn.functional.interpolate(
            torch.from_numpy(d)[:, None], size=SIZE, mode="bilinear", align_corners=True
        ).numpy()[:, 0]
        for d in distances
    )
    return np.stack([gaussian_filter(m, sigma, mode="reflect", truncate=4) for m in total])


@pytest.mark.parametrize("image_score", ["max", "sum"])
@pytest.mark.parametrize("sigma", [4.0, 1.5])
def test_thresholds_for_any_rate_blur_and_score_come_from_what_was_kept(
    training: Path, image_score: str, sigma: float
) -> None:
    changes = dict(image_score=image_score, blur_sigma=sigma)
    changes |= dict(false_positive_rate=0.2, pixel_false_positive_rate=0.05)
    calibration = load_predictor(training, **changes).calibration
    maps = maps_of(draw_distances(0), sigma)
    maxima, sums = np.sort(maps.max((1, 2))), np.sort(maps.sum((1, 2)))
    # 0.2 * 21 is 4 and a bit: the next image is the fourth above or lower, so 3 are above.
    expected = {"max": maxima, "sum": sums}[image_score][-4]
    assert calibration.image_threshold == pytest.approx(expected, rel=1e-5)
    assert calibration.map_high == pytest.approx(maxima[-4], rel=1e-5)
    assert calibration.kept_rate == 4 / 21
    pixels = np.sort(maps.ravel())
    above = pixels[-int(0.05 * pixels.size) - 1]
    assert calibration.pixel_threshold == pytest.approx(min(above, maxima[-4]), rel=1e-5)
    assert calibration.map_low == pytest.approx(np.quantile(pixels, 0.99), rel=1e-5)


def test_each_arithmetic_has_thresholds_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = save_training(tmp_path / "a", dtype="bfloat16", dtypes=("float32", "bfloat16"))
    predictor = load_predictor(both)
    assert (predictor.config.dtype, predictor.calibration.dtype) == ("bfloat16", "bfloat16")
    expected = maps_of(draw_distances(1), 4).max()
    assert predictor.calibration.image_threshold == pytest.approx(expected, rel=1e-5)
    assert "no thresholds" not in caplog.text
    # Trained where bfloat16 was not what it computed in: there are thresholds of float32 alone.
    predictor = load_predictor(save_training(tmp_path / "b", dtype="bfloat16"))
    assert (predictor.config.dtype, predictor.calibration.dtype) == ("float32", "float32")
    assert "scoring in float32, since there are no thresholds for bfloat16" in caplog.text


def test_distances_of_another_checkpoint_or_damaged_ones_are_not_used(
    training: Path, tmp_path: Path
) -> None:
    for i, damage in enumerate(["other", "cut", "absent"]):
        folder = save_training(tmp_path / damage, holdout=None)
        path = folder / "distances.npz"
        if damage == "other":
            write_distances(path, NormalDistances(True, 1, {"float32": draw_distances(0)}))
        elif damage == "cut":
            path.write_bytes((training / "distances.npz").read_bytes()[: 2000 * i])
        with pytest.raises(UserError, match=r"no scores of normal images, .* --mode eval"):
            load_predictor(folder)


def test_what_training_alone_can_change_is_an_error(training: Path) -> None:
    with pytest.raises(UserError, match="scales: after training only false_positive_rate, "):
        load_predictor(training, scales=(1,))
    with pytest.raises(UserError, match=r"config.false_positive_rate=1.5: must be a number in"):
        load_predictor(training, false_positive_rate=1.5)


def test_the_one_training_is_found_from_any_folder_above(training: Path, tmp_path: Path) -> None:
    assert find_training(training).folder == training
    assert find_training(training.parent).folder == training
    seed = save_training(tmp_path / "run" / "cloth" / "seed_1")
    for folder in (seed, seed.parent, seed.parent.parent):
        assert find_training(folder).folder == seed
    (tmp_path / "run" / "killed" / "checkpoints").mkdir(parents=True)
    assert find_training(tmp_path / "run").folder == seed
    save_training(tmp_path / "run" / "weave")
    with pytest.raises(UserError, match="several trainings: add one of cloth/seed_1, weave to --w"):
        find_training(tmp_path / "run")


@pytest.mark.parametrize("folder", ["", "absent"])
def test_a_folder_without_a_training_is_an_error(tmp_path: Path, folder: str) -> None:
    with pytest.raises(UserError, match="no checkpoint in "):
        find_training(tmp_path / folder)


def test_an_unfinished_training_or_another_teacher_is_an_error(tmp_path: Path) -> None:
    unfinished = save_training(tmp_path / "a", None, last_step=53)
    with pytest.raises(UserError, match="no thresholds, after step 7 of 53: finish the training"):
        load_predictor(unfinished)
    other = save_training(tmp_path / "b", teacher_sha256="0" * 64)
    with pytest.raises(UserError, match="was trained with the teacher weights random"):
        load_predictor(other)
    with pytest.raises(UserError, match=r"w\.npz is not a file"):
        load_predictor(other, "w.npz")
