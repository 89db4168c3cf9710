import csv
import json
from pathlib import Path

import pytest

from rd_jax.report import METRICS, append_row, drop_rows_after, write_json, write_results


def row(category: str, value: float | None, **values: object) -> dict:
    facts = {
        "backbone": "resnet18", "teacher_weights": "imagenet", "image_size": 256,
        "num_epochs": 10, "loss": "per_position", "seed": 0, "num_steps": 131, "last_step": 131,
    }  # fmt: skip
    return {"category": category, **dict.fromkeys(METRICS, value), **facts, **values}


def test_tables_hold_every_category_and_the_mean_of_what_is_defined(tmp_path: Path) -> None:
    rows = [row("a", 0.5), row("b", 1.0, aupro=None), row("c", None, seed=1)]
    for values in rows:
        write_json(tmp_path / values["category"] / "results.json", values)
    write_json(tmp_path / "other_run" / "results.json", {"categories": rows, "mean": {}})
    text = write_results(tmp_path)
    assert (tmp_path / "results.md").read_text() == text
    assert "| b | 100.00 | 100.00 | n/a | 100.00 |" in text
    assert "| mean | 75.00 | 75.00 | 50.00 | 75.00 |" in text
    assert "last step" in text
    assert "Backbone resnet18, teacher imagenet, 256 pixels" in text
    assert "seed 0, 1." in text
    assert "RANDOM" not in text
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["categories"] == rows
    assert saved["mean"]["aupro"] == 0.5
    with (tmp_path / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [line["category"] for line in table] == ["a", "b", "c", "mean"]
    assert table[1]["aupro"] == ""


def test_a_random_teacher_is_said_in_the_table(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "results.json", row("a", 0.5, teacher_weights="random"))
    assert "**The teacher is RANDOM" in write_results(tmp_path)


def test_an_unfinished_training_is_said_in_the_table(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "results.json", row("a", 0.5, num_steps=20))
    assert "**a is UNFINISHED: step 20 of 131.**" in write_results(tmp_path)


def test_rows_after_a_step_and_half_written_rows_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_row(path, {"step": step})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    drop_rows_after(path, 2)
    append_row(path, {"step": 5})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 5]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
