"""What lies where in the folder of a run."""

import os
from pathlib import Path

import pytest

from rd_jax.store.lock import lock_of, set_aside
from rd_jax.store.rows import write_arrays, write_json
from rd_jax.store.workdir import (
    JOINT,
    Evaluation,
    Training,
    Workdir,
    check_category,
    find_training,
    moved_aside,
)
from rd_jax.system.errors import UserError


def begun(training: Training) -> Training:
    """A training with a checkpoint."""
    (training.checkpoints / "5").mkdir(parents=True)
    return training


def evaluated(evaluation: Evaluation) -> Evaluation:
    write_json(evaluation.results, {"category": evaluation.name})
    return evaluation


def test_trainings_and_evaluations_are_found_by_category_and_seed_in_order(tmp_path: Path) -> None:
    run = Workdir(tmp_path)
    places = [("2", None), ("10", None), ("a[b]", 2), ("a[b]", 11), ("weave", None)]
    trainings = [run.training(*place) for place in places]
    for training in reversed(trainings[:-1]):
        begun(training)
    found = [evaluated(training.evaluation(training.name)) for training in trainings]
    write_json(Evaluation(tmp_path, "a[b]").results, {"category": "a[b]"})
    (tmp_path / "figures").mkdir()
    (tmp_path / "a[b]" / "seed_x").mkdir()
    assert run.trainings() == trainings[:-1]  # the checkpoints of the last one were removed
    assert run.evaluations() == found
    assert [evaluation.label for evaluation in found[2:4]] == ["a[b]-seed_2", "a[b]-seed_11"]
    assert Workdir(tmp_path / "absent").trainings() == []
    assert Workdir(tmp_path / "absent").evaluations() == []


@pytest.mark.parametrize("seed", [None, 3])
def test_each_category_of_a_joint_training_has_its_own_evaluation(
    tmp_path: Path, seed: int | None
) -> None:
    run = Workdir(tmp_path)
    joint = begun(run.training(JOINT, seed))
    found = [evaluated(joint.evaluation(category)) for category in ("bottle", "weave")]
    assert run.trainings() == [joint]
    assert run.evaluations() == found
    place = "bottle" if seed is None else "bottle/seed_3"
    assert joint.evaluation("bottle").results == tmp_path / place / "results.json"
    assert find_training(tmp_path) == find_training(joint.folder) == (joint, None)
    assert find_training(tmp_path / place) == (joint, "bottle")
    assert find_training(tmp_path / "not evaluated yet") == (joint, "not evaluated yet")


def test_the_one_training_that_a_folder_means_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begun(Workdir(tmp_path / "one").training("bottle"))
    seeds = [begun(Workdir(tmp_path / "many").training("bottle", seed)) for seed in (1, 2)]
    for folder in (first.folder, first.folder.parent):
        assert find_training(folder) == (first, None)
    assert find_training(seeds[1].folder) == (seeds[1], None)
    for folder in (tmp_path / "many", tmp_path / "many" / "bottle"):
        names = ", ".join(os.path.relpath(seed.folder, folder) for seed in seeds)
        with pytest.raises(
            UserError, match=f"{folder} holds several trainings: add one of {names} "
        ):
            find_training(folder)
    monkeypatch.chdir(first.folder)
    for text in (".", "../bottle", ".."):
        assert find_training(Path(text)) == (first, None)
    copied = first.folder.rename(tmp_path / "elsewhere")
    assert find_training(copied)[0].folder == copied
    (tmp_path / "begun" / "bottle" / "checkpoints").mkdir(parents=True)
    for folder in (tmp_path / "begun", tmp_path / "absent"):
        with pytest.raises(UserError, match=f"no checkpoint in {folder}: set --workdir"):
            find_training(folder)


def test_a_training_that_was_moved_aside_can_be_used_there(tmp_path: Path) -> None:
    training = begun(Workdir(tmp_path).training("weave"))
    assert set_aside(tmp_path, ["cloth"]) == {}
    kept = set_aside(tmp_path, ["weave"])["weave"]
    assert kept.relative_to(tmp_path).parts[0].startswith("replaced-")
    assert Workdir(tmp_path).trainings() == []
    begun(training)
    assert Workdir(tmp_path).trainings() == [training]
    assert find_training(kept)[0].folder == kept
    begun(Workdir(tmp_path).training(JOINT))
    assert find_training(kept)[0].folder == kept


def test_moving_aside_never_replaces_anything(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / "20").write_text(str(i))
        moved_aside(tmp_path / "20", tmp_path / "damaged")
    kept = {path.name: path.read_text() for path in (tmp_path / "damaged").iterdir()}
    assert kept == {"20": "0", "20.1": "1", "20.2": "2"}


IMPOSSIBLE = ("", ".", "..", "../../victim", "/etc", "a/b", "a\\b", "a\0b", ".hidden")
OTHERS = (
    *("checkpoints", "figures", "results.json", "results.csv", "report.html", ".locks"),
    *("replaced-20260101-000000", JOINT),
)


@pytest.mark.parametrize("name", [*IMPOSSIBLE, *OTHERS])
def test_no_name_that_is_read_from_a_file_leads_out_of_the_workdir(
    tmp_path: Path, name: str
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    run = Workdir(tmp_path / "runs" / "run")
    begun(run.training("weave"))
    with pytest.raises(UserError, match=r"^category '.*: .*; rename the category$"):
        check_category(name)
    with pytest.raises(UserError, match=r"^category "):
        run.training(JOINT).evaluation(name)
    if name != JOINT:
        with pytest.raises(UserError, match=r"^category "):
            set_aside(run.folder, ["weave", name])
    assert len(run.trainings()) == 1
    made = [path for path in tmp_path.rglob("*") if not path.is_relative_to(run.folder)]
    assert sorted(made) == [run.folder.parent, victim]


@pytest.mark.parametrize(
    "name", ["figures2", "a.results", "all", "[x]", "é 織", "-", "seed", "con", "a..b", "%s"]
)
def test_any_other_name_is_one(tmp_path: Path, name: str) -> None:
    run = Workdir(tmp_path)
    training = begun(run.training(name))
    assert run.trainings() == [training]
    assert find_training(training.folder) == (training, None)


def test_a_folder_that_cannot_be_entered_is_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = begun(Workdir(tmp_path).training("weave"))
    (tmp_path / "lost+found").mkdir()
    stat = os.stat

    def as_another_user(path: os.PathLike, **options: bool) -> os.stat_result:  # root may run this
        if os.path.dirname(path) == str(tmp_path / "lost+found"):
            raise PermissionError
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", as_another_user)
    with pytest.raises(PermissionError):
        (tmp_path / "lost+found" / "checkpoints").is_dir()
    assert Workdir(tmp_path).trainings() == [training]


def test_all_that_a_training_writes_to_is_tried_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rd_jax.store import workdir

    tried = []
    monkeypatch.setattr(workdir, "check_writable", tried.append)
    run = Workdir(tmp_path / "new" / "run")
    joint = begun(run.training(JOINT))
    evaluated(joint.evaluation("weave"))
    run.make([joint, joint.evaluation("weave"), joint.evaluation("new")])
    folders = [run.folder, joint.folder, joint.checkpoints, joint.evaluation("weave").folder]
    assert tried == folders


def test_a_workdir_that_cannot_be_made_or_holds_a_backslash_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/run: Not a directory"):
        Workdir(tmp_path / "file" / "run").make([])
    with pytest.raises(UserError, match=r"--workdir .*a\\b: .*backslash"):
        Workdir(tmp_path / "a\\b").make([])
    assert not (tmp_path / "a\\b").exists()


@pytest.mark.parametrize("seed", [None, 1])
def test_the_folder_of_a_training_is_no_workdir(tmp_path: Path, seed: int | None) -> None:
    """A summary written there took the place of the category's own results."""
    training = begun(Workdir(tmp_path).training("bracket", seed))
    lock_of(training).parent.mkdir(parents=True)
    with pytest.raises(UserError, match=r"bracket is where a run keeps .*, or to another folder$"):
        Workdir(tmp_path / "bracket").make([])
    Workdir(tmp_path).make([])


def test_the_folder_of_a_joint_trainings_evaluation_is_no_workdir(tmp_path: Path) -> None:
    evaluation = Workdir(tmp_path).training(JOINT).evaluation("bracket")
    write_arrays(evaluation.shown, {})
    with pytest.raises(UserError, match="bracket is where a run keeps"):
        Workdir(tmp_path / "bracket").make([])


def test_categories_may_be_called_as_seeds_are(tmp_path: Path) -> None:
    run = Workdir(tmp_path / "run")
    begun(run.training("seed_1"))
    run.make([])
