"""One picture of any size, such as a camera's frame."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from rd_jax import score_files, score_image
from rd_jax.predict.predictor import Prediction, Predictor
from rd_jax.report.heatmap import resized_map
from rd_jax.system.errors import UserError
from tests.reference_weights import draw_images
from tests.trained import SIZE

SHAPES = [(90, 30), (20, 80), (SIZE, SIZE), (1, 300)]


def drawn(shape: tuple[int, int]) -> np.ndarray:
    """A picture uint8 RGB [*shape, 3]."""
    return draw_images(1, max(shape))[0][: shape[0], : shape[1]]


def of_file(predictor: Predictor, path: Path) -> Prediction:
    (result,) = score_files(predictor, [path])
    assert isinstance(result, Prediction)
    return result


def assert_same(found: Prediction, expected: Prediction, shape: tuple[int, int]) -> None:
    """The result of a picture is that of its file, and its map can have the picture's size."""
    assert found.score == pytest.approx(expected.score, abs=1e-5)
    assert found.is_anomalous == expected.is_anomalous
    np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, atol=1e-5)
    full = found.full_size_map()
    assert (full.shape, full.dtype) == (shape, np.float32)
    np.testing.assert_allclose(full, resized_map(expected.anomaly_map, shape), atol=1e-5)
    assert full.max() == pytest.approx(found.score, abs=1e-5)


@pytest.mark.parametrize("resize", ["stretch", "fit"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_grey", [False, True])
def test_a_picture_scores_as_its_file(
    predictor: Predictor, tmp_path: Path, resize: str, shape: tuple[int, int], is_grey: bool
) -> None:
    predictor = predictor._replace(resize=resize)
    pixels = drawn(shape)[..., 0] if is_grey else drawn(shape)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    expected = of_file(predictor, tmp_path / "a.png")
    given = [pixels, picture, *([pixels[..., None]] if is_grey else [])]
    for image in given:
        assert_same(score_image(predictor, image), expected, shape)


def test_views_of_a_cameras_buffer_score_as_what_they_show(predictor: Predictor) -> None:
    pixels = drawn((60, 80))
    for view in (pixels[:, ::-1], pixels[::2, 10:], pixels[..., ::-1], pixels.swapaxes(0, 1)):
        expected = score_image(predictor, np.ascontiguousarray(view))
        found = score_image(predictor, view)
        assert found.score == expected.score
        np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)


def turned(picture: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(path, exif=exif)


KINDS: dict[str, Callable[[Image.Image, Path], None]] = {
    "turned": turned,
    "16-bit": lambda picture, path: Image.fromarray(
        np.asarray(picture.convert("L")).astype(np.uint16) * 257
    ).save(path),
    "alpha": lambda picture, path: picture.convert("RGBA").save(path),
    "palette": lambda picture, path: picture.quantize(16).save(path),
    "bilevel": lambda picture, path: picture.convert("1").save(path),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_opened_file_scores_as_the_file(predictor: Predictor, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    KINDS[kind](Image.fromarray(drawn((40, 70))), path)
    shape = (70, 40) if kind == "turned" else (40, 70)
    with Image.open(path) as picture:
        before = dict(picture.info)
        assert_same(score_image(predictor, picture), of_file(predictor, path), shape)
        assert picture.info == before


@pytest.mark.parametrize("threshold", [0.5, 0.49, None])
def test_the_verdict_is_that_of_the_threshold(
    predictor: Predictor, threshold: float | None
) -> None:
    def score(images: Any) -> Any:
        return np.zeros(images.shape[:3], np.float32), np.full(len(images), 0.5, np.float32)

    thresholds = predictor.thresholds._replace(image_threshold=threshold)
    result = score_image(predictor._replace(score=score, thresholds=thresholds), drawn((9, 9)))
    assert result.is_anomalous is (None if threshold is None else threshold < 0.5)


def test_nothing_compiles_for_another_size(
    predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    jax.clear_caches()
    with jax.log_compiles(True):
        score_image(predictor, drawn((50, 60)))
        assert "Compiling" in caplog.text  # so that this test would see it
        caplog.clear()
        for shape in SHAPES:
            score_image(predictor, drawn(shape))
            score_image(predictor, drawn(shape)[..., 0])
        assert "ompil" not in caplog.text


def test_eight_threads_get_what_one_gets(predictor: Predictor) -> None:
    pictures = [drawn((30 + 7 * i, 90 - 3 * i)) for i in range(16)]
    expected = [score_image(predictor, picture) for picture in pictures]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda picture: score_image(predictor, picture), 4 * pictures))
    for result, alone in zip(found, 4 * expected, strict=True):
        assert result.score == pytest.approx(alone.score, abs=1e-6)
        np.testing.assert_allclose(result.anomaly_map, alone.anomaly_map, atol=1e-6)


PICTURE = np.zeros((40, 50, 3), np.uint8)


@pytest.mark.parametrize(
    "image",
    [
        PICTURE / np.float32(255),
        PICTURE.astype(bool),
        PICTURE.astype(np.uint16),
        np.moveaxis(PICTURE, -1, 0),
        PICTURE[..., [0, 1, 2, 2]],
        PICTURE[None],
        PICTURE[:0],
        np.uint8(3),
        "a.png",
    ],
    ids=lambda image: f"{np.asarray(image).dtype}-{np.shape(image)}",
)
def test_arrays_that_are_no_picture_are_refused_in_one_line(
    predictor: Predictor, image: Any
) -> None:
    found = np.asarray(image)
    said = f"the image is {found.dtype} {list(found.shape)}: must be uint8 [h, w] or [h, w, 3]"
    with pytest.raises(UserError, match=re.escape(said)):
        score_image(predictor, image)


@pytest.mark.parametrize("image", [Image.new("F", (9, 9)), Image.new("I", (9, 9))])
def test_pictures_without_a_white_are_refused(predictor: Predictor, image: Image.Image) -> None:
    with pytest.raises(UserError, match=f"mode {image.mode} and size .* must be of 8 bits"):
        score_image(predictor, image)
