"""The examples run as their first lines say."""

import re
import runpy

import pytest

from rd_jax.method.models import BACKBONES


def output_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    runpy.run_module(f"examples.{name}", run_name="__main__")
    return capsys.readouterr().out


def test_an_own_loss_is_minimised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(BACKBONES, "resnet10", BACKBONES["tiny"])
    text = output_of("own_loss", capsys)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", text)]
    assert len(losses) == 3
    assert losses[2] < losses[0]


def test_a_frozen_teachers_map_shows_the_stain(capsys: pytest.CaptureFixture[str]) -> None:
    text = output_of("frozen_teacher", capsys)
    assert text.count("feature (1, ") == 3
    inside, outside = map(float, re.findall(r"([\d.]+) (?:in|elsewhere)", text))
    assert inside > 3 * outside
