import csv
import json
from pathlib import Path

import numpy as np
import pytest

from rd_jax.method.metrics import METRICS
from rd_jax.report import tables
from rd_jax.store.results import read_results
from rd_jax.store.rows import append_row, drop_rows_after, write_json
from tests.report.evaluated import add_results, row


def write_results(workdir: Path) -> str:
    """Write them and return results.md without its heading."""
    tables.write_results(workdir, read_results(workdir))
    heading, _, text = (workdir / "results.md").read_text().partition("\n\n")
    assert heading == "# Results"
    return text


def test_a_console_shows_the_answer_the_table_and_what_to_beware_of(tmp_path: Path) -> None:
    add_results(tmp_path, "a", 0.5, num_steps=20)
    text = tables.write_results(tmp_path, read_results(tmp_path))
    answer, table, warnings = text.split("\n\n")
    assert answer == "no threshold, image AUROC 50.00 %"
    assert table.startswith("| category | image_auroc |")
    assert warnings == "a is UNFINISHED: step 20 of 131."
    assert write_results(tmp_path).startswith(f"{answer}\n\n{table}\n\n**{warnings}**\n\nMetrics")


def test_tables_hold_every_category_and_the_mean_of_what_is_defined(tmp_path: Path) -> None:
    rows = [row("a", 0.5), row("b", 1.0, aupro=None), row("c", None, seed=1)]
    for values in rows:
        write_json(tmp_path / values["category"] / "results.json", values)
    write_json(tmp_path / "other_run" / "results.json", {"categories": rows, "mean": {}})
    text = write_results(tmp_path)
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


@pytest.mark.parametrize(
    ("category", "cell"),
    [
        ("a|b", r"a\|b"),
        ("<img src=x onerror=alert(1)>", r"\<img src=x onerror=alert(1)>"),
        ("a&lt;b", r"a\&lt;b"),
        ("[a](javascript:x) `b` *c*", r"[a]\(javascript:x) \`b\` \*c\*"),
        ("a\nb\x1b[2J", r"a b\\x1b[2J"),
        ("metal_nut", "metal_nut"),
    ],
)
def test_the_name_of_a_category_is_text_and_nothing_else(
    tmp_path: Path, category: str, cell: str
) -> None:
    add_results(tmp_path, category, 0.5, num_steps=20)
    text = write_results(tmp_path)
    assert f"\n| {cell} | 50.00 | 50.00 |" in text
    assert f"\n**{cell} is UNFINISHED: step 20 of 131.**\n" in text


def test_the_rate_that_thresholds_keep_is_said(tmp_path: Path) -> None:
    for name, rate in {"a": 1 / 22, "b": 0.01, "c": None}.items():
        held_out = {"holdout": 0.1, "num_held_out": 21, "kept_false_positive_rate": rate}
        add_results(tmp_path, name, **held_out)
    for seed, rate in enumerate((0.1, 0.02)):
        held_out = {"holdout": 0.1, "num_held_out": 9, "kept_false_positive_rate": rate}
        add_results(tmp_path, "d", seed_folder=seed, **held_out)
    text = write_results(tmp_path)
    assert "hold-out 0.1 of the training images for the thresholds, 10 epochs" in text
    assert " On average at most 10% of new good images are above the threshold. Of held-out" in text
    assert " Of held-out images, 1% needs 99.\n" in text


def test_seeds_are_summarised_by_mean_and_sample_deviation(tmp_path: Path) -> None:
    values = {"a": [0.5, 0.7, 0.9], "b": [0.6, 0.6, 0.9]}
    for name, of_seed in values.items():
        for seed, value in enumerate(of_seed):
            facts = {"aupro": None, "train_seconds": float(seed)}
            add_results(tmp_path, name, value, seed_folder=seed, **facts)
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
        add_results(tmp_path, str(k), **values)
    text = write_results(tmp_path)
    assert "| normal class | image_auroc | image_auroc_sum | image_auroc_max |" in text
    assert "| 9 | 90.00 | 90.00 | 45.00 |\n| 10 | 90.00 | 90.00 | 50.00 |" in text
    assert "| mean | 90.00 | 90.00 | 25.00 |" in text
    assert "One-class novelty detection on digits" in text


def test_a_random_teacher_is_said_in_the_table(tmp_path: Path) -> None:
    add_results(tmp_path, "a", teacher_weights="random")
    assert "**The teacher is RANDOM" in write_results(tmp_path)


def test_the_embedded_teacher_is_said_to_be_for_a_first_look(tmp_path: Path) -> None:
    add_results(tmp_path, "a", teacher_weights="embedded")
    assert "**The teacher is the embedded one, which is for a first look" in write_results(tmp_path)


def test_rows_of_forward_distillation_are_named(tmp_path: Path) -> None:
    add_results(tmp_path, "a", direction="forward")
    assert ", forward distillation, scales" in write_results(tmp_path)
    add_results(tmp_path, "b")
    text = write_results(tmp_path)
    assert ", bottleneck mff_oce, forward distillation in some rows (a), scales" in text


def test_a_table_holds_what_is_defined_and_a_mean_of_several_alone(tmp_path: Path) -> None:
    nothing = dict.fromkeys(METRICS)
    add_results(tmp_path, "a", **nothing, image_threshold=0.5, num_held_out=20)
    text = write_results(tmp_path)
    assert text.startswith("threshold 0.5, no test images\n\nBackbone ")
    assert "|" not in text
    judged = {"image_precision": 0.25, "image_recall": 1.0, "image_threshold": 0.5}
    add_results(tmp_path, "a", **nothing | judged | {"image_auroc": 0.75})
    text = write_results(tmp_path)
    assert "| category | image_auroc | image_precision | image_recall |" in text
    assert "| a | 75.00 | 25.00 | 100.00 |" in text
    assert "| mean |" not in text
    assert json.loads((tmp_path / "results.json").read_text())["mean"]["image_precision"] == 0.25


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((3, 0), "**a has no anomalous test images: no AUROC is defined.**"),
        ((0, 3), "**a has no normal test images: no image AUROC is defined.**"),
        ((3, 3), None),
        ((0, 0), None),  # the first line says that there are no test images
        ((None, None), None),  # of an earlier version
    ],
)
def test_the_class_that_test_images_lack_is_named(
    counts: tuple, text: str | None, tmp_path: Path
) -> None:
    add_results(tmp_path, "a", num_normal=counts[0], num_anomalous=counts[1])
    add_results(tmp_path, "b", num_normal=1, num_anomalous=1)
    assert [line for line in write_results(tmp_path).splitlines() if "AUROC is" in line] == (
        [text] if text else []
    )


def test_precision_and_recall_are_averaged_over_seeds_and_categories(tmp_path: Path) -> None:
    for seed, values in enumerate(((0.5, 0.7), (0.7, None))):
        for name, value in zip("ab", values, strict=True):
            add_results(tmp_path, name, 0.9, seed, image_precision=value)
    text = write_results(tmp_path)
    a, b, mean = [line.split("|")[-2].strip() for line in text.splitlines() if "| 90.00" in line]
    assert (a, b, mean) == ("60.00 ± 14.14", "70.00", "65.00 ± 7.07")


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
