"""Files of named arrays: .npz."""

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rd_jax.system.files import write_whole

logger = logging.getLogger(__name__)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes the whole file or nothing."""
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    write_whole(path, file.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays in a file; none if there is no file or, with a warning, if it is damaged."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            return dict(file)
    except FileNotFoundError:
        return {}
    except Exception as error:  # zip files and arrays raise all kinds of errors
        logger.warning("%s is left out, since it cannot be read (%s)", path, error)
        return {}
