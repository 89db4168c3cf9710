import csv
import json
from pathlib import Path

import numpy as np
import pytest

from rd_jax.method.metrics import METRICS
from rd_jax.report.tables import write_results
from rd_jax.store.rows import append_row, drop_rows_after, write_json


def row(category: str, value: float | None, **values: object) -> dict:
    facts = {
        "backbone": "resnet18", "teacher_weights": "imagenet", "image_size": 256,
        "num_epochs": 10, "loss": "per_position", "seed": 0, "num_steps": 131, "last_step": 131,
        "dataset": "", "rd4ad_checkpoint": "", "bottleneck": "mff_oce", "scales": [1, 2, 3],
        "image_score": "max", "holdout": 0.0, "num_held_out": 0, "blur_sigma": 4.0,
        "dtype": "float32", "train_seconds": 2.0,
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
    assert "teacher imagenet, bottleneck mff_oce, scales [1, 2, 3], 256 pixels" in text
    assert "seed 0, 1." in text
    assert "RANDOM" not in text
    saved = json.loads((tmp_path / "results.json").read_text())
    for found, written in zip(saved["categories"], rows, strict=True):
        assert {name: found[name] for name in written} == written
    assert saved["mean"]["aupro"] == 0.5
    with (tmp_path / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [line["category"] for line in table] == ["a", "b", "c", "mean"]
    assert table[1]["aupro"] == ""


def test_a_bar_in_a_name_is_no_border(tmp_path: Path) -> None:
    write_json(tmp_path / "a|b" / "results.json", row("a|b", 0.5))
    assert "| a\\|b | 50.00 |" in write_results(tmp_path)


def test_the_rate_that_thresholds_keep_is_said(tmp_path: Path) -> None:
    for name, rate in {"a": 1 / 22, "b": 0.01, "c": None}.items():
        held_out = {"holdout": 0.1, "num_held_out": 21, "kept_false_positive_rate": rate}
        write_json(tmp_path / name / "results.json", row(name, 0.5, **held_out))
    for seed, rate in enumerate((0.1, 0.02)):
        path = tmp_path / "d" / f"seed_{seed}" / "results.json"
        held_out = {"holdout": 0.1, "num_held_out": 9, "kept_false_positive_rate": rate}
        write_json(path, row("d", 0.5, seed=seed, **held_out))
    text = write_results(tmp_path)
    assert "are expected (1% needs 99 images), 10 epochs" in text
    assert "hold-out 0.1 of the training images for the thresholds, above which 10% of new " in text


def test_seeds_are_summarised_by_mean_and_sample_deviation(tmp_path: Path) -> None:
    values = {"a": [0.5, 0.7, 0.9], "b": [0.6, 0.6, 0.9]}
    for name, of_seed in values.items():
        for seed, value in enumerate(of_seed):
            path = tmp_path / name / f"seed_{seed}" / "results.json"
            write_json(path, row(name, value, seed=seed, aupro=None, train_seconds=float(seed)))
    text = write_results(tmp_path)
    assert "mean ± standard deviation over the seeds" in text
    assert "last step" in text
    assert "seed 0, 1, 2." in text
    mean_of_a, deviation_of_a = 100 * np.mean(values["a"]), 100 * np.std(values["a"], ddof=1)
    assert f"| a | {mean_of_a:.2f} ± {deviation_of_a:.2f} |" in text
    summary = json.loads((tmp_path / "a" / "results.json").read_text())
    assert summary["seeds"] == [0, 1, 2]
    assert summary["image_auroc"] == pytest.approx(0.7)
    assert summary["image_auroc_std"] == pytest.approx(0.2)
    assert summary["train_seconds"] == 1.0
    assert summary["aupro"] is None
    assert summary["aupro_std"] is None
    mean = json.loads((tmp_path / "results.json").read_text())["mean"]
    of_seed = np.mean(list(values.values()), axis=0)
    assert mean["image_auroc"] == pytest.approx(of_seed.mean())
    assert mean["image_auroc_std"] == pytest.approx(of_seed.std(ddof=1))
    assert write_results(tmp_path) == text


def test_one_class_results_list_both_scores_in_the_order_of_the_classes(tmp_path: Path) -> None:
    for k in range(11):
        values = {"dataset": "digits", "image_auroc_sum": 0.9, "image_auroc_max": k / 20}
        write_json(tmp_path / str(k) / "results.json", row(str(k), 0.9, **values))
    text = write_results(tmp_path)
    assert "| normal class | image_auroc | image_auroc_sum | image_auroc_max |" in text
    assert "| 9 | 90.00 | 90.00 | 45.00 |\n| 10 | 90.00 | 90.00 | 50.00 |" in text
    assert "| mean | 90.00 | 90.00 | 25.00 |" in text
    assert "One-class novelty detection on digits" in text


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
