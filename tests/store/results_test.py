"""Results are read by evaluation, and summarised over seeds and categories."""

import statistics
from pathlib import Path
from typing import Any

import pytest

from rd_jax.method.metrics import METRICS
from rd_jax.store.results import mean_row, over_seeds, read_results, rows_of_categories
from rd_jax.store.rows import write_json
from rd_jax.store.workdir import JOINT, Workdir
from rd_jax.system.errors import UserError


def write(workdir: Path, category: str, seed: int | None = None, **row: Any) -> Path:
    path = Workdir(workdir).training(JOINT, seed).evaluation(category).results
    write_json(path, {"category": category, "seed": seed or 0, **row})
    return path


def test_damaged_results_are_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, content in (("a", "[1]"), ("b", '{"category": "b"'), ("c", '{"category": "c"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(content)
    assert list(read_results(tmp_path)) == ["c"]
    for name in ("a", "b"):
        assert f"{tmp_path / name / 'results.json'} is left out" in caplog.text


def test_tables_of_runs_one_folder_down_are_no_results(tmp_path: Path) -> None:
    write(tmp_path, "a")
    write_json(Workdir(tmp_path / "other").results, {"categories": [], "mean": {}})
    write(tmp_path / "other", "b")
    assert list(read_results(tmp_path)) == ["a"]


def test_values_that_an_older_version_lacks_have_defaults(tmp_path: Path) -> None:
    write(tmp_path, "a")
    ((_, row),) = read_results(tmp_path)["a"]
    assert row["backbone"] == "wide_resnet50_2"
    assert row["image_auroc"] is row["last_step"] is None


def test_seeds_become_one_row_and_categories_a_mean(tmp_path: Path) -> None:
    values = {("a", 1): 0.5, ("a", 2): 0.7, ("b", 1): 0.9, ("b", 2): 0.8}
    for (category, seed), value in values.items():
        row = {"image_auroc": value, "num_steps": 10 * seed, "last_step": 20, "device": f"d{seed}"}
        write(tmp_path, category, seed, **row)
    found = read_results(tmp_path)
    first, second = rows_of_categories(found)
    assert first["seeds"] == second["seeds"] == [1, 2]
    assert first["image_auroc"] == pytest.approx(0.6)
    assert first["image_auroc_std"] == pytest.approx(statistics.stdev([0.5, 0.7]))
    assert (first["num_steps"], first["last_step"], first["device"]) == (10, 20, ["d1", "d2"])
    assert first["aupro"] is first["aupro_std"] is None
    mean = mean_row(found)
    assert mean["image_auroc"] == pytest.approx(0.725)
    assert mean["image_auroc_std"] == pytest.approx(statistics.stdev([0.7, 0.75]))
    assert set(METRICS) < set(mean)


def test_seeds_that_were_evaluated_differently_have_no_mean(tmp_path: Path) -> None:
    for seed, sigma in ((1, 4.0), (2, 2.0)):
        write(tmp_path, "a", seed, blur_sigma=sigma)
    rows = [result.row for result in read_results(tmp_path)["a"]]
    with pytest.raises(UserError, match="seeds of a were evaluated with different blur_sigma: "):
        over_seeds(rows)
