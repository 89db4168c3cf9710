"""The test images of one training as the page shows them: decisions, colours, pictures."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from rd_jax.method.calibration import Calibration
from rd_jax.report.gallery import Evaluation, calibration_of, informative, wrongness
from rd_jax.report.heatmap import overlay


def gallery(evaluation: Evaluation, limit: int) -> dict[str, Any]:
    """What the template shows of at most `limit` of the M > 0 test images, worst errors first."""
    calibration, stored = calibration_of(evaluation), evaluation.shown
    errors = wrongness(evaluation.scores, evaluation.labels, calibration)
    chosen = informative(errors[stored], evaluation.scores[stored], limit)
    threshold = calibration.image_threshold if calibration else None
    return {
        "decisions": _decisions(evaluation, calibration),
        "num_images": len(errors),
        "is_small": evaluation.images.shape[1] < 96,
        "has_masks": len(evaluation.masks) > 0,
        "scale": _scale(evaluation, calibration),
        "cards": [_card(evaluation, k, threshold) for k in chosen],
    }


def _decisions(evaluation: Evaluation, calibration: Calibration | None) -> str:
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


def _scale(evaluation: Evaluation, calibration: Calibration | None) -> dict[str, str]:
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
    return {
        "low": f"{low:.3g} ({ends[0]})",
        "high": f"{high:.3g} ({ends[1]})",
        "bar": _uri(bar, "PNG"),
    }


def _card(evaluation: Evaluation, k: int, threshold: float | None) -> dict[str, Any]:
    """One image of those stored, with its map and its mask."""
    i, image = evaluation.shown[k], evaluation.images[k]
    score, is_anomalous = evaluation.scores[i], bool(evaluation.labels[i])
    heat = overlay(image, evaluation.strengths[k], 0, 255)
    is_error = threshold is not None and (score > threshold) != is_anomalous
    return {
        "name": str(evaluation.names[i]),
        "score": str(score),
        "label": "anomalous" if is_anomalous else "normal",
        "error": ("missed" if is_anomalous else "false alarm") if is_error else "",
        "image": _uri(image, "JPEG"),
        "heat": _uri(heat, "JPEG"),
        "mask": _uri(evaluation.masks[k], "PNG") if len(evaluation.masks) else "",
    }


def _uri(pixels: np.ndarray, kind: str) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
