import pytest

from rd_jax.method.thresholds import Thresholds
from rd_jax.report.tables import TEMPLATES
from rd_jax.report.words import answer, rate_in_words
from rd_jax.store.results import VERDICTS

THRESHOLDS = Thresholds("holdout", 20, 0.01, 0.5, 0.4, 0.1, 0.5, 1 / 21, 0.001)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"num_images": 21, "kept_rate": 1 / 22},
            "4.55% of new good images are above it. It rests on 21 held-out images; 1% needs 99",
        ),
        (
            {"num_images": 199, "kept_rate": 0.01},
            "1% of new good images are above it. It rests on 199 held-out images",
        ),
        (
            {"false_positive_rate": 1e-5, "num_images": 999, "kept_rate": 1e-3},
            "0.1% of new good images are above it. It rests on 999 held-out images; 0.001% needs "
            "99999",
        ),
        (
            {"false_positive_rate": 0.0, "num_images": 9, "kept_rate": 0.1},
            "Threshold 0.5: on average 10% of new good images are above it. It rests on 9 held-out "
            "images; no threshold can promise 0%",
        ),
        ({"kept_rate": None}, "Threshold 0.5, chosen by you: its rate of false alarms is unknown"),
        (
            {"image_threshold": None},
            "No thresholds, as no images were held out (--config.holdout=0.1)",
        ),
    ],
)
def test_the_kept_rate_is_said_and_what_the_asked_one_needs(changes: dict, text: str) -> None:
    assert rate_in_words(THRESHOLDS._replace(**changes)).endswith(text)


def scale_of(thresholds: Thresholds | None) -> str:
    template = TEMPLATES.get_template("scale.html")
    ends = (thresholds.map_low, thresholds.map_high) if thresholds else (0.1, 0.5)
    return template.render(thresholds=thresholds, ends=ends, scale="data:,").strip()


def test_the_ends_of_the_scale_are_said() -> None:
    without = THRESHOLDS._replace(source="train", image_threshold=None, pixel_threshold=None)
    start, _, end = scale_of(THRESHOLDS).partition(" <img")
    line = "in an anomalous image a line surrounds what is above"
    assert start.endswith(f"begins at 0.1 (the threshold of pixels; {line})")
    assert end.endswith("full from 0.5 (twice that).</p>")
    assert "there is no threshold of pixels)" in scale_of(without)
    assert "pixels of the training images are below)" in scale_of(without)
    assert "(the median of these maps)" in scale_of(None)
    assert "(their maximum)" in scale_of(None)


JUDGED = {"image_threshold": 0.62412, "num_anomalous": 36, "num_normal": 12}


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (
            [{**JUDGED, "num_missed": 0, "num_false_alarms": 10}],
            "threshold 0.6241, missed 0 of 36, false alarms 10 of 12",
        ),
        (
            [
                {**JUDGED, "num_missed": 1, "num_false_alarms": 2},
                {**JUDGED, "num_missed": 3, "num_false_alarms": 0},
            ],
            "2 thresholds, missed 4 of 72, false alarms 2 of 24",
        ),
        (
            [{**JUDGED, "num_missed": 1, "num_false_alarms": 0, "num_normal": 0}],
            "threshold 0.6241, missed 1 of 36",
        ),
        ([{"image_threshold": 0.5}], "threshold 0.5, no test images"),
        ([{}], "no threshold, no test images"),
        (
            [{"image_auroc": 0.9, "num_anomalous": 36}, {"image_auroc": 0.95, "num_normal": 3}],
            "no threshold, image AUROC 92.50 %",
        ),
    ],
)
def test_the_first_line_is_the_answer(rows: list[dict], text: str) -> None:
    unknown = dict.fromkeys(("image_threshold", "image_auroc", *VERDICTS))
    assert answer([unknown | row for row in rows]) == text


def test_the_categories_that_a_threshold_is_for_are_named() -> None:
    assert rate_in_words(THRESHOLDS, ["cable"]).startswith(
        "Threshold 0.5, for cable: on average 4.76%"
    )
    both = "Threshold 0.5, one threshold for all of cable, pill: on average 4.76%"
    assert rate_in_words(THRESHOLDS, ["cable", "pill"]).startswith(both)
