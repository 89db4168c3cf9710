"""What lies where in the folder of a run."""

import os
from pathlib import Path

import pytest

from rd_jax.store.results import read_results
from rd_jax.store.rows import read_rows, write_json
from rd_jax.store.workdir import (
    check_category,
    find_trainings,
    set_aside,
    training_of,
    trainings_at,
)
from rd_jax.system.errors import UserError


def test_trainings_are_found_by_category_and_seed_in_order(tmp_path: Path) -> None:
    expected = [
        *(training_of(tmp_path, "2"), training_of(tmp_path, "10")),
        *(training_of(tmp_path, "a[b]", 2), training_of(tmp_path, "a[b]", 11)),
        training_of(tmp_path, "weave"),
    ]
    for training in reversed(expected[:-1]):
        training.checkpoints.mkdir(parents=True)
    write_json(expected[-1].results, {"category": "weave"})  # checkpoints were removed
    write_json(tmp_path / "a[b]" / "results.json", {"category": "a[b]"})  # over its seeds
    (tmp_path / "figures").mkdir()
    (tmp_path / "a[b]" / "seed_x").mkdir()
    assert find_trainings(tmp_path) == expected
    assert [training.name for training in expected[2:4]] == ["a[b]-seed_2", "a[b]-seed_11"]
    (found,) = trainings_at(tmp_path / "10")
    assert found.folder == expected[1].folder
    assert len(trainings_at(tmp_path / "a[b]")) == 2
    assert find_trainings(tmp_path / "absent") == []


def test_a_folder_that_cannot_be_entered_is_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = training_of(tmp_path, "weave")
    training.checkpoints.mkdir(parents=True)
    (tmp_path / "lost+found").mkdir()

    stat = os.stat

    def as_another_user(path: os.PathLike, **options: bool) -> os.stat_result:  # root may run this
        if os.path.dirname(path) == str(tmp_path / "lost+found"):
            raise PermissionError
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", as_another_user)
    with pytest.raises(PermissionError):
        (tmp_path / "lost+found" / "checkpoints").is_dir()
    assert find_trainings(tmp_path) == [training]


def test_what_is_no_results_is_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, content in (("a", "[]"), ("b", '{"category": "b"'), ("c", '{"category": "c"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(content)
    assert list(read_results(tmp_path)) == ["c"]
    for name in ("a", "b"):
        assert f"{tmp_path / name / 'results.json'} is left out" in caplog.text


def test_what_is_set_aside_is_no_training_any_more(tmp_path: Path) -> None:
    training = training_of(tmp_path, "weave")
    training.checkpoints.mkdir(parents=True)
    assert set_aside(tmp_path, ["cloth"]) == {}
    kept = set_aside(tmp_path, ["weave"])["weave"]
    assert kept is not None
    assert kept.name == "weave"
    assert kept.parent.name.startswith("replaced-")
    assert find_trainings(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("image_auroc", "high"), ("scales", 3), ("seed", [1]), ("num_steps", {}), ("backbone", 5)],
)
def test_results_with_impossible_values_are_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, value: object
) -> None:
    write_json(tmp_path / "a" / "results.json", {"category": "a"})
    write_json(tmp_path / "b" / "results.json", {"category": "b", name: value})
    assert list(read_results(tmp_path)) == ["a"]
    assert f"{tmp_path}/b/results.json is left out, since {name} in it cannot be" in caplog.text


def test_rows_are_those_lines_that_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n7\n[]\n{"loss": 1}\n\xff\n{"step": 2}\n{"st')
    assert read_rows(path) == [{"step": 1, "loss": 2.0}, {"step": 2}]


@pytest.mark.parametrize(
    "name",
    [
        *("checkpoints", "figures", "results.json", "report.html", "replaced-20260101-000000"),
        "all-categories",
    ],
)
def test_names_of_what_else_a_run_keeps_are_no_categories(name: str) -> None:
    with pytest.raises(UserError, match=f"category '{name}': a run keeps other things"):
        check_category(name)
    check_category(f"{name}2" if name[0] != "r" else f"a{name}")
