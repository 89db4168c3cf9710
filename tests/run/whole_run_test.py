"""A run from the command line to its results, as a user meets it."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

import rd_jax
from rd_jax import calibrate
from rd_jax.data.cache import load_images
from rd_jax.data.decode import placed, read_image
from rd_jax.report import figures
from rd_jax.report.gallery import read_evaluation
from rd_jax.store import checkpoint
from rd_jax.weights.teacher import load_rd4ad
from tests.command import (
    METRICS,
    ROOT,
    assert_one_line,
    captured,
    evaluation,
    results,
    run,
    succeeded,
    training,
)
from tests.run.conftest import HELD_OUT, HOLDOUT, LAST_STEP


def same_figures(one: dict, other: dict) -> bool:
    """Whether two results differ in how long they took alone."""
    of_time = dict.fromkeys(("train_seconds", "eval_seconds", "images_per_second"))
    return one | of_time == other | of_time


def test_a_run_leaves_the_files_that_it_promises(trained: Path) -> None:
    for category in ("cloth", "weave"):
        row = results(trained / category)
        assert all(0 <= row[name] <= 1 for name in METRICS)
        assert row["category"] == category
        assert row["num_steps"] == LAST_STEP
        assert row["num_held_out"] == HELD_OUT
        assert row["teacher_weights"] == "random"
        assert len(row["teacher_sha256"]) == 64
        facts = (
            "backbone bottleneck scales loss image_size seed num_epochs batch_size learning_rate "
            "adam_b1 adam_b2 train_seconds eval_seconds images_per_second device"
        )
        assert all(row[fact] is not None for fact in facts.split())
        lines = (trained / category / "metrics.jsonl").read_text().splitlines()
        logged = [json.loads(line) for line in lines]
        assert [entry["step"] for entry in logged if "loss" in entry] == [2, LAST_STEP]
        assert [entry["step"] for entry in logged if "aupro" in entry] == [2]
        assert checkpoint.steps(trained / category / "checkpoints") == [LAST_STEP, 2]
    table = (trained / "results.md").read_text()
    assert "RANDOM" in table
    assert table.count("\n| ") == 5
    combined = json.loads((trained / "results.json").read_text())
    assert [row["category"] for row in combined["categories"]] == ["cloth", "weave"]
    assert (trained / "report.html").is_file()
    assert len(list((trained / "figures").glob("weave-*.pdf"))) == 4


def test_evaluation_reproduces_training_exactly(trained: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(trained, tmp_path / "copy")
    (workdir / "results.md").unlink()
    for name in ("results.json", "thresholds.json", "evaluation.npz"):
        (workdir / "weave" / name).unlink()
    done = succeeded(*evaluation(workdir, "--config.category=weave"))
    assert f"| weave | {100 * results(trained / 'weave')['image_auroc']:.2f} " in done.stdout
    assert str(workdir) in done.stdout
    assert (workdir / "results.md").read_text() == (trained / "results.md").read_text()
    assert same_figures(results(workdir / "weave"), results(trained / "weave"))
    for name in ("thresholds.json", "evaluation.npz"):
        assert (workdir / "weave" / name).read_bytes() == (trained / "weave" / name).read_bytes()


def test_a_finished_run_that_is_started_again_does_nothing(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "copy")
    files = [*workdir.glob("*/results.json"), *workdir.glob("figures/*")]
    before = [path.stat().st_mtime_ns for path in files]
    compiled, done_again = [], []
    listen = lambda event, *_, **__: compiled.append(event)  # noqa: E731
    read, own = Counter[Path](), checkpoint.latest_metadata
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "latest_metadata", lambda path: read.update([path]) or own(path))
        for module, name in ((checkpoint, "load_rest"), (figures, "write_figures")):
            patch.setattr(module, name, lambda *_, name=name: done_again.append(name))
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            done = run(*training(data_dir, workdir, *HOLDOUT))
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("evaluated already") == 2
    assert "| weave | " in done.stdout
    assert done_again == []
    assert max(read.values()) <= 4  # however many other trainings there are
    assert sum("backend_compile" in event for event in compiled) <= 2  # of the random teacher's key
    assert [path.stat().st_mtime_ns for path in files] == before


def test_a_category_is_gone_on_with_however_its_accents_are_spelled(
    data_dir: Path, tmp_path: Path
) -> None:
    composed, decomposed = "b\u00fcrste", "bu\u0308rste"
    shutil.copytree(data_dir / "weave", tmp_path / "data" / decomposed)
    for name in (composed, decomposed):
        category = f"--config.category={name}"
        done = succeeded(*training(tmp_path / "data", tmp_path / "work", *HOLDOUT, category))
    assert "evaluated already" in done.stderr
    assert not (tmp_path / "work" / decomposed).exists()
    assert rd_jax.restore(tmp_path / "work", composed)[2]["step"] == LAST_STEP


def test_an_unfinished_training_is_evaluated_as_such_and_has_no_thresholds(
    trained: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "copy")
    shutil.rmtree(workdir / "weave" / "checkpoints" / str(LAST_STEP))
    (workdir / "empty" / "checkpoints").mkdir(parents=True)  # killed before its first save
    done = succeeded(*evaluation(workdir))
    assert f"\nweave is UNFINISHED: step 2 of {LAST_STEP}.\n" in done.stdout
    assert results(workdir / "weave")["num_steps"] == 2
    assert results(workdir / "weave")["image_threshold"] is None


def test_a_loss_that_is_not_finite_stops_the_run(data_dir: Path, tmp_path: Path) -> None:
    steep = ("--config.category=weave", "--config.learning_rate=1e38")
    done = run(*training(data_dir, tmp_path / "work", *steep))
    assert_one_line(done, "weave: the loss is not finite at step 2: lower --config.learning_rate")
    pattern = (
        r"last finite loss: \d\.\d+; last good checkpoint: there is none; images of this step: 0"
    )
    assert re.search(pattern, done.stderr)


def test_the_library_imports_where_there_is_only_what_its_functions_need() -> None:
    absent = "ml_collections tensorflow_datasets matplotlib huggingface_hub safetensors tqdm jinja2"
    code = f"import sys; sys.modules.update(dict.fromkeys({absent.split()})); import rd_jax"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_compiled_programs_are_kept_for_later_runs(tmp_path: Path) -> None:
    code = (
        "import jax; from rd_jax.system.command import keep_compiled_programs\n"
        "keep_compiled_programs(); jax.jit(lambda x: x + 1)(1)"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=environment)
    assert any(tmp_path.glob("rd_jax/compiled/**/*-cache"))


def test_a_checkpoint_scores_images_from_python(trained: Path, data_dir: Path) -> None:
    model, student_variables, known = rd_jax.restore(trained, "weave")
    config = known["config"]
    assert (known["step"], known["last_step"], config["blur_sigma"]) == (LAST_STEP, LAST_STEP, 4.0)
    teacher = rd_jax.load_teacher(model.backbone, config["teacher_weights"])
    path = data_dir / "weave" / "test" / "good" / "000.png"
    size = config["image_size"]
    image, _ = placed(read_image(path), (size, size), config["resize"])
    maps, scores = rd_jax.make_scorer(model)(teacher, student_variables, image[None])
    assert maps.shape == (1, 32, 32)
    assert float(scores[0]) == float(maps.max())
    predictor = rd_jax.load_predictor(trained / "weave")
    (result,) = rd_jax.score_files(predictor, [path])
    assert result.score == pytest.approx(float(scores[0]), abs=1e-5)
    assert result.is_anomalous == (result.score > known["thresholds"]["image_threshold"])
    assert rd_jax.score_arrays(predictor, image[None])[1] == pytest.approx(result.score, abs=1e-6)


def test_upright_and_fitted_images_are_the_same_from_training_to_heatmaps(
    data_dir: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "work"
    shape = ("--config.image_size=64,32", "--config.resize=fit", "--config.category=weave")
    succeeded(*training(data_dir, workdir, *HOLDOUT, *shape, "--config.num_epochs=1"))
    assert "64x32 pixels, aspect ratio kept" in (workdir / "results.md").read_text()
    assert results(workdir / "weave")["image_size"] == [64, 32]
    shown = read_evaluation(workdir / "weave" / "evaluation.npz")
    assert shown is not None
    assert [*shown.size] == [64, 32]
    predictor = rd_jax.load_predictor(workdir)
    paths = sorted((data_dir / "weave" / "test").glob("*/*.png"))
    scores = {}
    for result in rd_jax.score_files(predictor, paths):
        assert result.anomaly_map.shape == (32, 32)  # square pictures in upright images
        scores[f"{result.path.parent.name}/{result.path.name}"] = result.score
    assert [scores[name] for name in shown.names] == pytest.approx(shown.scores, rel=1e-5)
    again = succeeded(*evaluation(workdir))
    assert "evaluated already" in again.stderr


@pytest.mark.usefixtures("few_digits")
def test_one_class_detection_from_the_command_line(tmp_path: Path) -> None:
    common = ("--config", "one_class:digits", "--workdir", str(tmp_path))
    quick = ("--config.backbone=tiny", "--config.teacher_weights=random", "--config.num_epochs=1")
    for label in (3, 8):
        done = succeeded(*common, *quick, f"--config.normal_class={label}")
        row = results(tmp_path / str(label))
        assert row["image_auroc"] == pytest.approx(row["image_auroc_sum"], abs=1e-4)
        assert row["image_auroc_max"] != row["image_auroc_sum"]
        assert row["pixel_auroc"] is None
    assert "\n| 3 | " in done.stdout
    assert "\n| 8 | " in done.stdout
    before = results(tmp_path / "3")
    one = ("--mode", "eval", "--config.normal_class=3", "--config.image_score=max")
    succeeded(*common, *one)
    assert results(tmp_path / "3")["image_auroc"] == before["image_auroc_max"]
    assert_one_line(run(*common, *quick, "--config.normal_class=10"), "has the classes 0 to 9")
    other = ("--config", "one_class:mnist", "--workdir", str(tmp_path))
    assert_one_line(run(*other, "--mode", "eval"), "dataset='mnist': the checkpoint in ")


def test_a_checkpoint_of_the_authors_code_is_evaluated(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="the extra `parity` is not installed")
    from tests.weights.rd4ad_test import write_checkpoint

    path, workdir = tmp_path / "res10_weave.pth", tmp_path / "work"
    write_checkpoint(path, "resnet10")
    own = ("--config.backbone=resnet10", f"--config.rd4ad_checkpoint={path}")
    evaluated = ("--mode", "eval", "--config.category=weave")
    succeeded(*training(data_dir, workdir, *own, *evaluated))
    text = (workdir / "results.md").read_text()
    assert "weave: the authors' checkpoint res10_weave.pth" in text
    assert "last step" not in text
    row = results(workdir / "weave")
    assert all(0 <= row[name] <= 1 for name in METRICS)
    assert row["num_steps"] is None
    # It predicts as the converted networks do, and more good images give it a threshold.
    files = sorted((data_dir / "weave" / "test" / "good").iterdir())
    predictor = rd_jax.load_predictor(workdir)
    assert predictor.thresholds.image_threshold is None
    scores = [result.score for result in rd_jax.score_files(predictor, files)]
    scorer = rd_jax.make_scorer(rd_jax.Model("resnet10"))
    teacher = rd_jax.load_teacher("resnet10", "random")
    images, _ = load_images(files, (32, 32))
    _, expected = scorer(teacher, load_rd4ad(path, "resnet10"), images)
    assert scores == pytest.approx(expected.tolist(), abs=1e-5)
    more = captured(calibrate.main, ["--workdir", str(workdir), *map(str, files)])
    assert more.returncode == 0, more.stderr
    threshold = rd_jax.load_predictor(workdir).thresholds.image_threshold
    assert threshold == pytest.approx(max(scores), rel=1e-3)
    succeeded(*training(data_dir, workdir, *own, *evaluated))
    assert rd_jax.load_predictor(workdir).thresholds.image_threshold == threshold
    done = run(*training(data_dir, trained, *own, *evaluated))
    assert_one_line(done, "weave holds a training")
    done = run(*training(data_dir, workdir, *own, "--mode", "eval"))
    assert_one_line(done, "rd4ad_checkpoint is of one category: set --config.category")
    done = run(*training(data_dir, workdir, *own, *evaluated, "--config.joint=True"))
    assert_one_line(done, "config.joint=True: rd4ad_checkpoint is of one category")
    assert_one_line(run(*training(data_dir, workdir, *own)), "add --mode eval")


def test_metrics_of_a_run_are_those_of_the_maps_of_the_library(
    data_dir: Path, trained: Path
) -> None:
    from rd_jax.method.metrics import metrics_of
    from tests.run.scores import maps_and_scores, split_of

    split = split_of(data_dir, "weave")
    _, student, _ = rd_jax.restore(trained, "weave")
    maps, scores = maps_and_scores(student, split.test)
    expected = metrics_of(maps, scores, split.labels, split.masks)
    row = results(trained / "weave")
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert np.ptp(scores) > 0
