"""The examples run as their first lines say."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def output_of(name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{name}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_an_own_loss_is_minimised() -> None:
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", output_of("own_loss"))]
    assert len(losses) == 3
    assert losses[2] < losses[0]


def test_a_frozen_teachers_map_shows_the_stain() -> None:
    text = output_of("frozen_teacher")
    assert text.count("feature (1, ") == 3
    inside, outside = map(float, re.findall(r"([\d.]+) (?:in|elsewhere)", text))
    assert inside > 3 * outside
