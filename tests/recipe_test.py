"""The benchmarks of the recipe run, and put what they find into tables."""

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.recipe import ablations, precision
from benchmarks.teacher.embedded_teacher import to_state_dict
from rd_jax import load_teacher
from rd_jax.data.synthetic import write_category
from rd_jax.weights.hub import IMAGENET
from tests.bare import bare_machine
from tests.command import assert_one_line, captured
from tests.speed_test import command


def test_both_dtypes_are_trained_on_a_machine_with_few_packages(tmp_path: Path) -> None:
    path, weights = tmp_path / "precision.json", tmp_path / "weights.npz"
    write_category(tmp_path / "data", num_train=8, num_test=2, size=32)
    np.savez(weights, **to_state_dict(load_teacher("tiny", "random")))
    done = command(
        *("tests.tiny", "benchmarks.recipe.precision"),
        *(f"--data={tmp_path / 'data'}", f"--weights={weights}"),
        *("--categories", "weave", "--backbone=tiny", "--image_size=32", "--epochs=1"),
        *("--seeds", "0", "1", f"--json={path}"),
        JAX_PLATFORMS="cpu",
        JAX_NUM_CPU_DEVICES="4",  # for which other tests have compiled it
        **bare_machine(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["trainings"]
    assert [(row["dtype"], row["seed"]) for row in rows] == [
        (dtype, seed) for seed in (0, 1) for dtype in ("bfloat16", "float32")
    ]
    for row in rows:
        assert row["metrics"].keys() > {*precision.NAMES}
        assert f"| weave | {row['dtype']} | {row['seed']} | " in done.stdout
    for dtype in precision.DTYPES:
        (mean,) = (line for line in done.stdout.splitlines() if f"{dtype} | mean of 2 |" in line)
        values = [row["metrics"]["aupro"] for row in rows if row["dtype"] == dtype]
        assert f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}" in mean


def test_trainings_that_would_not_end_in_time_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: Iterator[int] = itertools.count(step=10)  # each training takes 10 seconds
    monkeypatch.setattr(precision.time, "monotonic", lambda: next(ticks))
    splits: list[Any] = [SimpleNamespace(name="weave")]
    train_in = dict.fromkeys(precision.DTYPES, lambda *_: {"aupro": 1.0})
    found = list(precision.trainings(splits, [0, 1, 2], train_in, 65.0))
    assert [row["metrics"] is not None for row in found] == [True, True, True, False, False, False]


def test_scales_are_all_subsets() -> None:
    grid = ablations.grid("scales", "resnet18")
    assert len({variant.scales for variant in grid}) == 7
    assert {v.bottleneck for v in ablations.grid("bottleneck", "x")} == {"pre", "oce", "mff_oce"}
    assert {v.backbone for v in ablations.grid("backbone", "x")} == set(IMAGENET)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--seeds=a"], "--seeds=a: give integers between commas"),
        (["--seeds=0,0"], "config.seeds=(0, 0): must be"),
        (["--num_epochs=0"], "config.num_epochs=0: must be"),
        (["--grids=depth"], "--grids=depth: choose some of bottleneck,"),
        (["--backbone=vgg"], "invalid choice: 'vgg'"),
        (["--backbone=resnet10"], "set --teacher_weights, such as --teacher_weights=embedded"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], said: str
) -> None:
    monkeypatch.setattr(ablations, "train", lambda *_: pytest.fail("it trains"))
    where = ["--data_dir", str(tmp_path), "--workdir", str(tmp_path / "work")]
    assert_one_line(captured(ablations.main, [*where, *flags]), said)


def test_the_embedded_teacher_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def train(variant: ablations.Variant, _: Path, fields: dict[str, Any]) -> str:
        seen.append((variant.backbone, fields["teacher_weights"], fields["seeds"]))
        return "not here"

    monkeypatch.setattr(ablations, "train", train)
    where = ["--data_dir", str(tmp_path), "--workdir", str(tmp_path / "work")]
    chosen = ["--backbone=resnet10", "--teacher_weights=embedded", "--grids=direction"]
    done = captured(ablations.main, [*where, *chosen])
    assert done.returncode == 2
    assert done.stdout.count("failed: not here") == 2
    assert seen == 2 * [("resnet10", "embedded", "(0,)")]


def test_a_grid_becomes_a_table_and_keeps_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablations, "MAIN", "tests.tiny_main")
    write_category(tmp_path / "data", num_train=8, num_test=2, size=32)
    fields = {
        "data_dir": str(tmp_path / "data"), "teacher_weights": "random", "image_size": 32,
        "batch_size": 4, "num_epochs": 1, "seeds": "(0,1)", "dtype": "float32",
    }  # fmt: skip
    good, bad = ablations.Variant("tiny"), ablations.Variant("tiny", scales=(2,))
    outcomes = {
        good: ablations.train(good, tmp_path / "work", fields),
        bad: ablations.train(bad, tmp_path / "work", fields | {"teacher_weights": "absent.npz"}),
    }
    text = ablations.write_table("scales", outcomes, tmp_path / "work")
    assert "2 failed: teacher_weights" in text
    assert "absent.npz is not a file" in text
    mean = outcomes[good]
    assert isinstance(mean, dict)
    row = f"| 1, 2, 3 | {100 * mean['image_auroc']:.2f} ± {100 * mean['image_auroc_std']:.2f} |"
    assert row in text
    with (tmp_path / "work" / "scales.csv").open() as file:
        line, failed = csv.DictReader(file)
    assert (failed["scales"], failed["aupro"]) == ("2", "")
    assert float(line["aupro_std"]) == mean["aupro_std"]
