"""Thresholds of a run: from all held-out images, in float32, with any rate, blur and score."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import rd_jax
from rd_jax.run import evaluation as evaluation_module
from rd_jax.store.results import VERDICTS
from rd_jax.store.rows import read_json
from tests.command import assert_one_line, evaluation, results, run, succeeded, training
from tests.run.conftest import HELD_OUT, HOLDOUT, SHORT_RECIPE
from tests.run.scores import held_out, maps_and_scores, split_of
from tests.run.whole_run_test import same_figures

ONE = ("--config.category=weave",)


def held_out_scores(data_dir: Path, workdir: Path, *how: object) -> np.ndarray:
    """By the library's own scorer, not by what was kept."""
    _, student, _ = rd_jax.restore(workdir, "weave")
    images = held_out(split_of(data_dir, "weave"))
    return np.sort(maps_and_scores(student, images, *how)[1])


def one_category(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained / "weave", tmp_path / "copy" / "weave")
    return tmp_path / "copy"


def test_the_threshold_lets_no_held_out_image_pass(data_dir: Path, trained: Path) -> None:
    row, scores = results(trained / "weave"), held_out_scores(data_dir, trained)
    assert row["num_held_out"] == len(scores) == HELD_OUT
    assert row["image_threshold"] == pytest.approx(scores[-1], rel=2e-4)
    assert row["image_threshold"] >= scores[-1]
    assert row["kept_false_positive_rate"] == 1 / 7
    _, _, known = rd_jax.restore(trained, "weave")
    assert known["thresholds"]["image_threshold"] == row["image_threshold"]
    predictor = rd_jax.load_predictor(trained / "weave")
    assert predictor.thresholds.image_threshold == row["image_threshold"]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_held_out_images_are_normal_in_batches_of_any_size(
    data_dir: Path, trained: Path, batch_size: int
) -> None:
    predictor = rd_jax.load_predictor(trained / "weave")
    images = held_out(split_of(data_dir, "weave"))
    _, scores, anomalous = rd_jax.score_arrays(predictor, images, batch_size)
    assert not anomalous.any()
    assert scores.max() > (1 - 2e-4) * predictor.thresholds.image_threshold


def test_the_log_says_which_rate_the_held_out_images_can_promise(
    trained: Path, tmp_path: Path
) -> None:
    workdir = one_category(trained, tmp_path)
    (workdir / "weave" / "thresholds.json").unlink()
    done = succeeded(*evaluation(workdir))
    assert f"weave: scoring {HELD_OUT} normal images" in done.stderr
    assert (
        "14.3% of new good images are above it, in 95 of 100 cases at most 39.3%. It rests on 6 "
        "held-out images; 1% needs 99"
    ) in done.stderr


def test_verdicts_on_test_images_are_counted_and_said_first(trained: Path) -> None:
    counts = np.zeros(4, int)  # missed, of, false alarms, of
    for category in ("cloth", "weave"):
        row = read_json(trained / category / "results.json")
        shown = np.load(trained / category / "evaluation.npz")
        called, labels = shown["scores"] > row["image_threshold"], shown["labels"]
        expected = (labels & ~called).sum(), labels.sum(), (~labels & called).sum(), (~labels).sum()
        assert tuple(row[name] for name in VERDICTS) == expected
        counts += expected
    missed, anomalous, alarms, normal = counts
    text = f"2 thresholds, missed {missed} of {anomalous}, false alarms {alarms} of {normal}\n"
    assert (trained / "results.md").read_text().startswith(f"# Results\n\n{text}")
    assert f'<p class="answer">{text.strip()}</p>' in (trained / "report.html").read_text()


def test_the_held_out_images_with_the_highest_scores_are_kept_to_look_at(
    data_dir: Path, trained: Path
) -> None:
    shown = np.load(trained / "weave" / "evaluation.npz")
    folder = data_dir / "weave" / "train" / "good"
    paths = [folder / str(name) for name in shown["held_out_names"]]
    results = rd_jax.score_files(rd_jax.load_predictor(trained / "weave"), paths)
    scores = [result.score for result in results]
    assert shown["held_out_scores"] == pytest.approx(scores, rel=1e-5)
    stored = read_json(trained / "weave" / "thresholds.json")["normal"]["scores"]
    assert scores == pytest.approx(sorted(stored)[::-1][:3], rel=1e-5)
    assert len(shown["held_out_images"]) == len(shown["held_out_maps"]) == 3


def test_training_in_bfloat16_is_scored_in_float32(data_dir: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "a[b]*"  # a name like a pattern is one like others
    narrow = (*HOLDOUT, *ONE, *SHORT_RECIPE, "--config.dtype=bfloat16", "--config.num_epochs=1")
    narrow += ("--config.keep_optimizer=True",)
    succeeded(*training(data_dir, workdir, *narrow))
    row, scores = results(workdir / "weave"), held_out_scores(data_dir, workdir)
    assert row["dtype"] == "bfloat16"
    assert row["image_threshold"] == pytest.approx(scores[-1], rel=2e-4)
    done = run(
        *training(data_dir, workdir, *narrow, "--config.dtype=auto", "--config.num_epochs=2")
    )
    assert_one_line(done, "another config: dtype ('bfloat16', now 'auto', on cpu 'float32')")


def test_another_rate_needs_no_scoring_of_normal_images_and_another_blur_does(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    workdir = one_category(trained, tmp_path)
    done = succeeded(*evaluation(workdir, "--config.false_positive_rate=0.5"))
    assert "normal images\n" not in done.stderr
    row, scores = results(workdir / "weave"), held_out_scores(data_dir, workdir)
    assert row["image_threshold"] == pytest.approx(scores[-3], rel=2e-4)  # half of 7, rounded down
    assert row["kept_false_positive_rate"] == 3 / 7
    other = rd_jax.load_predictor(trained / "weave", false_positive_rate=0.5)
    assert other.thresholds.image_threshold == row["image_threshold"]

    changes = {"blur_sigma": 1.0, "image_score": "sum"}
    flags = [f"--config.{name}={value}" for name, value in changes.items()]
    done = succeeded(*evaluation(workdir, *flags))
    assert f"weave: scoring {HELD_OUT} normal images" in done.stderr
    row, scores = results(workdir / "weave"), held_out_scores(data_dir, workdir, 1.0, "sum")
    assert row["image_threshold"] == pytest.approx(scores[-1], rel=2e-4)
    assert {name: row[name] for name in changes} == changes
    predictor = rd_jax.load_predictor(workdir)  # which scores as the last evaluation did
    assert predictor.thresholds.image_threshold == row["image_threshold"]
    (path, *_) = sorted((data_dir / "weave" / "test" / "good").iterdir())
    (result,) = rd_jax.score_files(predictor, [path])
    assert result.score == pytest.approx(float(result.anomaly_map.sum()), rel=2e-4)


def test_normal_images_are_scored_again_if_thresholds_are_lost(
    trained: Path, tmp_path: Path
) -> None:
    workdir = one_category(trained, tmp_path)
    path = workdir / "weave" / "thresholds.json"
    expected, whole = results(workdir / "weave"), path.read_bytes()
    for content in (None, whole[: len(whole) // 2]):
        path.unlink()
        if content:
            path.write_bytes(content)
        succeeded(*evaluation(workdir))
        assert path.read_bytes() == whole
        assert same_figures(results(workdir / "weave"), expected)
    (workdir / "weave" / "evaluation.npz").write_bytes(b"PK, cut off")
    succeeded(*evaluation(workdir))
    done = succeeded(*evaluation(workdir))
    assert "evaluated already" in done.stderr


def test_other_training_images_set_no_threshold(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    workdir, others = one_category(trained, tmp_path), tmp_path / "others"
    shutil.copytree(data_dir, others)
    next((others / "weave" / "train" / "good").iterdir()).unlink()
    flags = (f"--config.data_dir={others}",)
    succeeded(*evaluation(workdir, *flags, "--config.false_positive_rate=0.5"))
    assert results(workdir / "weave")["kept_false_positive_rate"] == 3 / 7  # the kept ones still do
    (workdir / "weave" / "thresholds.json").unlink()
    done = succeeded(*evaluation(workdir, *flags))
    assert "no thresholds, since the training images are not those of the training" in done.stderr
    assert results(workdir / "weave")["image_threshold"] is None


def test_a_kill_while_the_test_set_is_scored_leaves_no_older_results(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = one_category(trained, tmp_path)
    expected = results(workdir / "weave")
    (workdir / "weave" / "thresholds.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(evaluation_module, "score_split", lambda *_: (_ for _ in ()).throw(KeyError))
        with pytest.raises(KeyError):
            run(*evaluation(workdir))
    assert not (workdir / "weave" / "results.json").exists()
    succeeded(*evaluation(workdir))
    assert same_figures(results(workdir / "weave"), expected)
