"""The test images of one training as HTML: decisions, and a gallery that can be sorted."""

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from rd_jax import gallery
from rd_jax.calibration import Calibration
from rd_jax.heatmap import overlay

_SORT = {
    "worst": "worst errors first",
    "descending": "score descending",
    "ascending": "score ascending",
    "name": "name",
}


def gallery_html(evaluation: gallery.Evaluation, limit: int, is_open: bool) -> str:
    """At most `limit` of the M > 0 test images as HTML, worst errors first, with map and mask."""
    calibration = gallery.calibration_of(evaluation)
    threshold = calibration.image_threshold if calibration else None
    wrongness = gallery.wrongness(evaluation.scores, evaluation.labels, calibration)
    stored = evaluation.shown
    chosen = gallery.informative(wrongness[stored], evaluation.scores[stored], limit)
    cards = [_card(evaluation, k, rank, threshold) for rank, k in enumerate(chosen)]
    buttons = "".join(
        f'<button data-key="{key}" aria-pressed="{str(key == "worst").lower()}">{label}</button>'
        for key, label in _SORT.items()
    )
    small = "small" if evaluation.images.shape[1] < 96 else ""
    return (
        f"<p>{_decisions(evaluation, calibration)}</p>"
        f"<details{' open' if is_open else ''}><summary>Test images: {len(chosen)} of "
        f"{len(wrongness)}</summary>{_how_chosen(len(chosen), len(wrongness))}"
        f"{_scale(evaluation, calibration)}"
        f'<div class="sort" role="group" aria-label="Order of the images">{buttons}</div>'
        f'<div class="gallery {small}">{"".join(cards)}</div></details>'
    )


def _decisions(evaluation: gallery.Evaluation, calibration: Calibration | None) -> str:
    labels = evaluation.labels
    if calibration is None or calibration.image_threshold is None:
        if labels.all() or not labels.any():
            return "There is no threshold: worst errors first is an order by score."
        return (
            "There is no threshold from held-out normal images. Worst errors first means farthest "
            "on the wrong side of the threshold with the best F1 on these test images, which "
            "serves this order and nothing else."
        )
    above = evaluation.scores > calibration.image_threshold
    return (
        f"Threshold {calibration.image_threshold:.4g}, from {calibration.num_images} held-out "
        "normal images of which at most "
        f"{100 * calibration.false_positive_rate:g} % score higher: {(~above & labels).sum()} of "
        f"{labels.sum()} anomalous images are missed, {(above & ~labels).sum()} of "
        f"{(~labels).sum()} normal images are false alarms."
    )


def _how_chosen(num_chosen: int, num_images: int) -> str:
    if num_chosen == num_images:
        return ""
    return f"<p>Shown are the {num_chosen // 2} worst, and others evenly spaced by score.</p>"


def _scale(evaluation: gallery.Evaluation, calibration: Calibration | None) -> str:
    """What the colours of the overlays mean."""
    low, high = evaluation.map_range
    grey = np.full((8, 128, 3), 128, np.uint8)
    bar = overlay(grey, np.tile(np.linspace(0, 1, 128), (8, 1)), 0, 1)
    ends = ("the median of these maps", "their maximum")
    if calibration:
        normal = {"holdout": "held-out normal images", "train": "the training images"}
        ends = (
            f"99 % of the pixels of {normal[calibration.source]} are below",
            "five times as far above their median",
        )
    pictures = "Image, anomaly map, mask" if len(evaluation.masks) else "Image, anomaly map"
    return (
        f'<p class="muted">{pictures}. Map: {low:.3g} ({ends[0]}) '
        f'<img class="scale" src="{_uri(bar, "PNG")}" alt="from no colour over blue to red"> '
        f"{high:.3g} ({ends[1]}).</p>"
    )


def _card(evaluation: gallery.Evaluation, k: int, rank: int, threshold: float | None) -> str:
    """One image of those stored, with its map and its mask."""
    i = evaluation.shown[k]
    name, score = escape(evaluation.names[i]), evaluation.scores[i]
    is_anomalous = bool(evaluation.labels[i])
    label = "anomalous" if is_anomalous else "normal"
    image = evaluation.images[k]
    heat = overlay(image, evaluation.strengths[k], 0, 255)
    pictures = [
        f'<img src="{_uri(image, "JPEG")}" alt="{name}">',
        f'<img src="{_uri(heat, "JPEG")}" alt="anomaly map of {name}">',
    ]
    if len(evaluation.masks):
        pictures.append(f'<img src="{_uri(evaluation.masks[k], "PNG")}" alt="mask of {name}">')
    error = ""
    if threshold is not None and (score > threshold) != is_anomalous:
        error = f" <mark>{'missed' if is_anomalous else 'false alarm'}</mark>"
    return (
        f'<figure class="{label}" data-rank="{rank}" data-score="{score}" data-name="{name}">'
        f"<div>{''.join(pictures)}</div>"
        f"<figcaption>{name}<br>{score:.4g} <b>{label}</b>{error}</figcaption></figure>"
    )


def _uri(pixels: np.ndarray, kind: str) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
