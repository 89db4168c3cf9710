import csv
import json
from pathlib import Path

import pytest

from rd_jax.report import METRICS, write_json, write_results


def row(category: str, value: float | None, **values: object) -> dict:
    facts = {
        "backbone": "resnet18", "teacher_weights": "imagenet", "image_size": 256,
        "num_epochs": 10, "loss": "per_position", "seed": 0,
    }  # fmt: skip
    return {"category": category, **dict.fromkeys(METRICS, value), **facts, **values}


def test_tables_hold_every_category_and_the_mean_of_what_is_defined(tmp_path: Path) -> None:
    rows = [row("a", 0.5), row("b", 1.0, aupro=None), row("c", None)]
    text = write_results(tmp_path, rows)
    assert (tmp_path / "results.md").read_text() == text
    assert "| b | 100.00 | 100.00 | n/a | 100.00 |" in text
    assert "| mean | 75.00 | 75.00 | 50.00 | 75.00 |" in text
    assert "last step" in text
    assert "RANDOM" not in text
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["categories"] == rows
    assert saved["mean"]["aupro"] == 0.5
    with (tmp_path / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [line["category"] for line in table] == ["a", "b", "c", "mean"]
    assert table[1]["aupro"] == ""


def test_a_random_teacher_is_said_in_the_table(tmp_path: Path) -> None:
    text = write_results(tmp_path, [row("a", 0.5, teacher_weights="random")])
    assert "**The teacher is RANDOM" in text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
