"""Runs that are made once in a session; tests look at them, or change copies."""

from pathlib import Path

import pytest

from tests.command import succeeded, training
from tests.conftest import made_once

HELD_OUT = 6  # of 12 training images
TRAINED_ON = 6
LAST_STEP = 3  # 2 epochs of 6 images in batches of 4
HOLDOUT = ("--config.holdout=0.5",)
KEPT = (
    *("--config.checkpoint_every_epochs=1", "--config.eval_every_epochs=1"),
    "--config.keep_optimizer=True",
)
SHORT_RECIPE = ("--config.loss=mixed", "--config.ema=0.999")
SEEDS = ("--config.category=weave", "--config.seeds=0,1")
JOINT = ("--config.joint=True",)


@pytest.fixture(scope="session")
def trained(data_dir: Path) -> Path:
    """Two categories, each trained and evaluated."""
    return made_once(
        "trained", lambda workdir: succeeded(*training(data_dir, workdir, *HOLDOUT, *KEPT))
    )


@pytest.fixture(scope="session")
def trained_seeds(data_dir: Path) -> Path:
    """One category, trained with two seeds."""
    return made_once(
        "trained_seeds",
        lambda workdir: succeeded(*training(data_dir, workdir, *HOLDOUT, *KEPT, *SEEDS)),
    )


@pytest.fixture(scope="session")
def trained_jointly(data_dir: Path) -> Path:
    """One training for both categories."""
    return made_once(
        "trained_jointly",
        lambda workdir: succeeded(*training(data_dir, workdir, *HOLDOUT, *KEPT, *JOINT)),
    )
