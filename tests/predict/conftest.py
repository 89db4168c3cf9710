"""One training and its predictor for all tests of predictions."""

from pathlib import Path

import pytest

from rd_jax.predict.predictor import Predictor, load_predictor
from tests.trained import save_training


@pytest.fixture(scope="session")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a category that was trained and evaluated."""
    return save_training(tmp_path_factory.mktemp("run") / "weave")


@pytest.fixture(scope="session")
def predictor(training: Path) -> Predictor:
    """What is loaded from it; its program compiles once."""
    return load_predictor(training)
