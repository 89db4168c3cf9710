"""Thresholds in words: for the command lines, the tables and the page."""

from collections.abc import Sequence
from fractions import Fraction
from statistics import fmean

from rd_jax.method.thresholds import Thresholds, images_needed, num_exceeding
from rd_jax.store.results import VERDICTS
from rd_jax.store.rows import Row

ENOUGH = 20  # held-out images; with fewer, luck decides the rate of false alarms


def answer(rows: Sequence[Row]) -> str:
    """Return the first line of every output: the threshold, and its errors on test images.

    `rows` are the results of trainings. Their errors are added up.
    """
    judged = [row for row in rows if row["image_threshold"] is not None]
    missed, anomalous, false_alarms, normal = (
        sum(row[name] or 0 for row in judged) for name in VERDICTS
    )
    areas = [row["image_auroc"] for row in rows if row["image_auroc"] is not None]
    text = f"{len(judged)} thresholds"
    if len(judged) < 2:
        text = f"threshold {judged[0]['image_threshold']:.4g}" if judged else "no threshold"
    text += f", missed {missed} of {anomalous}" if anomalous else ""
    text += f", false alarms {false_alarms} of {normal}" if normal else ""
    text += f", image AUROC {100 * fmean(areas):.2f} %" if areas and not judged else ""
    return text if anomalous or normal or areas else f"{text}, no test images"


def percent(rate: float) -> str:
    """Return a fraction as text in per cent."""
    return f"{100 * rate:.3g}%"


def needs(rate: float) -> str:
    """Return text on how many held-out images a rate needs."""
    return f"{percent(rate)} needs {images_needed(rate)}" if rate else "no threshold can promise 0%"


def rate_in_words(thresholds: Thresholds | None, categories: Sequence[str] = ()) -> str:
    """Return two sentences: the threshold with the rate that it keeps, and its images.

    `categories` are those that the threshold is for. Give them where there is a choice.
    """
    if thresholds is None or thresholds.image_threshold is None:
        return "No thresholds, as no images were held out (--config.holdout=0.1)"
    text = f"Threshold {thresholds.image_threshold:.4g}"
    if thresholds.kept_rate is None:
        return f"{text}, chosen by you: its rate of false alarms is unknown"
    if len(categories) > 1:
        text += f", one threshold for all of {', '.join(categories)}"
    elif categories:
        text += f", for {categories[0]}"
    text += f": on average {percent(thresholds.kept_rate)} of new good images are above it"
    if thresholds.possible_rate is not None:
        text += f", in 95 of 100 cases at most {percent(thresholds.possible_rate)}"
    asked = thresholds.false_positive_rate
    is_kept = num_exceeding(thresholds.num_images, asked) >= 0
    return f"{text}. It rests on {_counted(thresholds)}{'' if is_kept else f'; {needs(asked)}'}"


def _counted(thresholds: Thresholds) -> str:
    """Return text on which good images the threshold rests on."""
    added = thresholds.num_added
    held_out = thresholds.num_images - added
    if not added:
        return f"{held_out} held-out images"
    return f"{added} added images" + (f" and {held_out} held-out ones" if held_out else "")


def caution(thresholds: Thresholds) -> str | None:
    """Return a warning if the threshold rests on few images, else None."""
    count, kept, possible = thresholds.num_images, thresholds.kept_rate, thresholds.possible_rate
    if kept is None or possible is None or count >= ENOUGH:
        return None
    return (
        f"{_counted(thresholds)} are few: on average {_one_in(kept)} good images will be called "
        f"anomalous, possibly {_one_in(possible)}; hold out {ENOUGH} or more, or add good images "
        "with python -m rd_jax.calibrate"
    )


def _one_in(rate: float) -> str:
    """Return a rate as "2 in 5"."""
    share = Fraction(rate).limit_denominator(20 if rate < 0.25 else 5)
    return f"{share.numerator} in {share.denominator}"
