import pytest

from rd_jax.report.promise import promise, scale_is
from tests.trained import CALIBRATION


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"num_images": 21, "kept_rate": 1 / 22},
            "4.55% of new normal images are expected above it, the least that 21 held-out images "
            "can promise (1% needs 99)",
        ),
        (
            {"num_images": 199, "kept_rate": 0.01},
            "1% of new normal images are expected above it, by 199 held-out images",
        ),
        (
            {"false_positive_rate": 1e-5, "num_images": 999, "kept_rate": 1e-3},
            "0.1% of new normal images are expected above it, the least that 999 held-out images "
            "can promise (0.001% needs 99999)",
        ),
        (
            {"false_positive_rate": 0.0, "num_images": 9, "kept_rate": 0.1, "dtype": "bfloat16"},
            "Threshold 0.5 of scores in bfloat16: 10% of new normal images are expected above it, "
            "the least that 9 held-out images can promise (none can promise 0%)",
        ),
        ({"kept_rate": None}, "Threshold 0.5 of scores in float32, of which nothing is promised"),
        ({"image_threshold": None}, "No thresholds, as no images were held out"),
    ],
)
def test_the_kept_rate_is_said_and_what_the_asked_one_needs(changes: dict, text: str) -> None:
    assert text in promise(CALIBRATION._replace(**changes))


def test_the_ends_of_the_scale_are_said() -> None:
    without = CALIBRATION._replace(source="train", image_threshold=None, map_high=0.9)
    assert "such a pixel alone makes" in scale_is(CALIBRATION)[1]
    assert "their map's sum" in scale_is(CALIBRATION._replace(image_threshold=900.0))[1]
    assert "there is no threshold" in scale_is(without)[1]
    assert "pixels of held-out normal images are below" in scale_is(CALIBRATION)[0]
    assert "pixels of the training images are below" in scale_is(without)[0]
    assert scale_is(CALIBRATION._replace(map_low=0.5 - 1e-6))[0] == "just below its end"
    assert scale_is(None) == ("the median of these maps", "their maximum")
