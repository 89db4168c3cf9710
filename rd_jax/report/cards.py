"""The test images of one training as the page shows them: decisions, colours, pictures."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from rd_jax.report.gallery import Evaluation, calibration_of, informative, wrongness
from rd_jax.report.heatmap import overlay


def gallery(evaluation: Evaluation, limit: int) -> dict[str, Any]:
    """What the template shows of at most `limit` of the M > 0 test images, worst errors first."""
    calibration, stored = calibration_of(evaluation), evaluation.shown
    scores, labels, masks = evaluation.scores, evaluation.labels, evaluation.masks
    threshold = calibration.image_threshold if calibration else None
    called = labels if threshold is None else scores > threshold  # no decision, no error
    missed, false_alarms = labels & ~called, called & ~labels
    errors = wrongness(scores, labels, calibration)

    def card(k: int) -> dict[str, Any]:
        """One image of those stored, with its map and its mask."""
        i, image = stored[k], evaluation.images[k]
        return {
            "name": str(evaluation.names[i]),
            "score": str(scores[i]),
            "label": "anomalous" if labels[i] else "normal",
            "error": "missed" if missed[i] else "false alarm" if false_alarms[i] else "",
            "image": _uri(image, "JPEG"),
            "heat": _uri(overlay(image, evaluation.strengths[k], 0, 255), "JPEG"),
            "mask": _uri(masks[k], "PNG") if len(masks) else "",
        }

    grey, ramp = np.full((8, 128, 3), 128, np.uint8), np.tile(np.linspace(0, 1, 128), (8, 1))
    return {
        "calibration": calibration,
        "threshold": threshold,
        "num_missed": missed.sum(),
        "num_anomalous": labels.sum(),
        "num_false_alarms": false_alarms.sum(),
        "num_normal": (~labels).sum(),
        "num_images": len(labels),
        "is_small": evaluation.images.shape[1] < 96,
        "has_masks": len(masks) > 0,
        "map_range": evaluation.map_range,
        "scale": _uri(overlay(grey, ramp, 0, 1), "PNG"),  # what the colours mean
        "cards": [card(k) for k in informative(errors[stored], scores[stored], limit)],
    }


def _uri(pixels: np.ndarray, kind: str) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=85)  # which a PNG has not
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
