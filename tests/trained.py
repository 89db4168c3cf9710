"""A checkpoint of the tiny backbone that was never trained, for tests of what comes after."""

from pathlib import Path

import jax
import numpy as np

from configs.mvtec import get_config
from rd_jax import checkpoint, create_train_state
from rd_jax.calibration import Calibration
from rd_jax.config import as_dict
from rd_jax.weights import find_teacher

SIZE = 32
CALIBRATION = Calibration("holdout", 20, 0.01, 0.5, 0.4, 0.1, 1.2)
NO_HOLDOUT = CALIBRATION._replace(source="train", image_threshold=None, pixel_threshold=None)


def save_training(folder: Path, calibration: Calibration | None, **changes: object) -> Path:
    """Leaves in `folder` what a training would; `changes` are of the metadata."""
    config = get_config("weave")
    config.update(backbone="tiny", image_size=SIZE, teacher_weights="random", dtype="float32")
    teacher = find_teacher("tiny", "random")
    variables = jax.device_get(create_train_state(config, jax.random.key(0)).student_variables)
    metadata = {
        "config": as_dict(config),
        "teacher_weights": teacher.weights,
        "teacher_sha256": teacher.sha256,
        "last_step": 7,
        "dtype": "float32",
        "calibration": calibration and calibration._asdict(),
        **changes,
    }
    checkpoint.save(folder / checkpoint.FOLDER, 7, variables, {"m": np.zeros(1)}, metadata)
    return folder
