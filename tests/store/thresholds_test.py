"""Thresholds belong to one checkpoint, and come back with what they come from."""

import json
from pathlib import Path

import numpy as np
import pytest

from rd_jax.method.thresholds import NormalScores, Thresholds
from rd_jax.store.thresholds import StoredThresholds, read_thresholds, write_thresholds


def stored(**changes: object) -> StoredThresholds:
    rng = np.random.default_rng(0)
    scores, maxima = rng.random((2, 20)).astype(np.float32)
    pixels = np.stack([np.linspace(1, 0, 50), np.sort(rng.random(50))], 1)
    values = dict.fromkeys(Thresholds._fields, 0.25)
    values |= {"source": "holdout", "num_images": 20, "kept_rate": None} | changes
    normal = NormalScores(True, scores, maxima, pixels)
    return StoredThresholds(
        123, {"scales": [1, 2], "blur_sigma": 4.0}, Thresholds(**values), normal
    )


def test_thresholds_are_read_to_the_last_digit(tmp_path: Path) -> None:
    expected = stored()
    write_thresholds(tmp_path / "new" / "x.json", expected)
    found = read_thresholds(tmp_path / "new" / "x.json", 123)
    assert found
    assert found[:3] == expected[:3]
    assert found.normal.is_held_out is True
    assert found.normal.num_added == expected.normal.num_added
    for a, b in zip(found.normal[1:4], expected.normal[1:4], strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_there_are_no_thresholds_for_another_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_thresholds(tmp_path / "x.json", stored())
    assert read_thresholds(tmp_path / "x.json", 124) is None
    assert read_thresholds(tmp_path / "absent.json", 123) is None
    assert not caplog.records


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            ("thresholds", {}),
            ("thresholds", None),
            ("thresholds", stored()[2]._asdict() | {"x": 1}),
        ),
        ("normal", {"is_held_out": True, "scores": [1], "maxima": [1]}),
        ("normal", {"is_held_out": True, "scores": ["a"], "maxima": [1], "pixels": [[1, 2]]}),
        ("normal", []),
    ],
)
def test_damaged_ones_are_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, field: str, value: object
) -> None:
    path = tmp_path / "x.json"
    write_thresholds(path, stored())
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert read_thresholds(path, 123) is None
    assert f"{path} is left out (" in caplog.text
    assert "let --mode eval write it again" in caplog.text
