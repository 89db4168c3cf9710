"""The command line, as a user meets it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

import rd_jax
from rd_jax.data.decode import decode_image
from rd_jax.data.synthetic import write_category
from rd_jax.method.models.init import teacher_shapes
from rd_jax.predict.predictor import Prediction
from rd_jax.report.gallery import read_evaluation
from rd_jax.store import checkpoint
from rd_jax.weights.convert import _torch_name
from tests.command import METRICS, ROOT, SMALL, assert_one_line, run
from tests.reference_weights import draw_state_dict


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_category(folder, num_train=6, num_test=2, size=64)
    shutil.copytree(folder / "weave", folder / "cloth")
    return folder


@pytest.fixture(scope="module")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories, trained and evaluated."""
    workdir = tmp_path_factory.mktemp("runs") / "work"
    done = run(
        *("--config", "configs/mvtec.py", f"--config.data_dir={data_dir}", *SMALL),
        *("--config.eval_every_epochs=1", "--config.checkpoint_every_epochs=1"),
        *("--config.keep_optimizer=True", "--workdir", str(workdir)),
    )
    assert done.returncode == 0, done.stderr
    assert "| weave | " in done.stdout
    assert str(workdir) in done.stdout
    assert "step 3 of 3, loss" in done.stderr
    return workdir


@pytest.mark.parametrize("switch", ["true", "false"])
def test_compiled_programs_are_kept_for_later_runs_unless_switched_off(
    tmp_path: Path, switch: str
) -> None:
    code = (
        "import jax; from rd_jax.system.compilation import keep_compiled_programs\n"
        "keep_compiled_programs(); jax.jit(lambda x: x + 1)(1)"
    )
    environment = {"XDG_CACHE_HOME": str(tmp_path), "JAX_ENABLE_COMPILATION_CACHE": switch}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=os.environ | environment)
    assert any(tmp_path.glob("rd_jax/compiled/**/*-cache")) == (switch == "true")


def results(workdir: Path, category: str) -> dict:
    return json.loads((workdir / category / "results.json").read_text())


def test_a_run_leaves_the_files_that_it_promises(trained: Path) -> None:
    for category in ("cloth", "weave"):
        row = results(trained, category)
        assert all(0 <= row[name] <= 1 for name in METRICS)
        assert row["category"] == category
        assert row["num_steps"] == 3
        assert row["teacher_weights"] == "random"
        assert len(row["teacher_sha256"]) == 64
        facts = (
            "backbone bottleneck scales loss image_size seed num_epochs train_seconds "
            "eval_seconds images_per_second device"
        )
        assert all(row[fact] is not None for fact in facts.split())
        lines = (trained / category / "metrics.jsonl").read_text().splitlines()
        logged = [json.loads(line) for line in lines]
        assert [entry["step"] for entry in logged if "loss" in entry][-1] == 3
        assert [entry["step"] for entry in logged if "aupro" in entry] == [2]
    table = (trained / "results.md").read_text()
    assert "RANDOM" in table
    assert table.count("\n| ") == 5
    combined = json.loads((trained / "results.json").read_text())
    assert [row["category"] for row in combined["categories"]] == ["cloth", "weave"]


def test_evaluation_reproduces_training_exactly(trained: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(trained, tmp_path / "copy")
    before = results(workdir, "weave")
    (workdir / "results.md").unlink()
    (workdir / "weave" / "results.json").unlink()
    done = run("--mode", "eval", "--config", "configs/mvtec.py:weave", "--workdir", str(workdir))
    assert done.returncode == 0, done.stderr
    assert (workdir / "results.md").read_text() == (trained / "results.md").read_text()
    after = results(workdir, "weave")
    assert before.pop("eval_seconds") != after.pop("eval_seconds")
    assert before == after


def test_training_goes_on_where_it_was_interrupted(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "copy")
    expected = results(workdir, "weave")
    untouched = (workdir / "cloth" / "results.json").stat().st_mtime_ns
    shutil.rmtree(workdir / "weave" / "checkpoints" / "3")  # back to the end of epoch 1
    (workdir / "weave" / "results.json").unlink()
    done = run(
        *("--config", "configs/mvtec.py", f"--config.data_dir={data_dir}", *SMALL),
        *("--workdir", str(workdir)),
    )
    assert done.returncode == 0, done.stderr
    assert "weave: 6 images, steps 2 to 3" in done.stderr
    assert "cloth: trained already, step 3 of 3" in done.stderr
    assert "cloth: evaluated already" in done.stderr
    assert (workdir / "cloth" / "results.json").stat().st_mtime_ns == untouched
    row = results(workdir, "weave")
    assert {name: row[name] for name in METRICS} == {name: expected[name] for name in METRICS}
    logged = (workdir / "weave" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in logged]
    assert steps == sorted(steps)
    assert steps[-1] == 3


def test_changed_training_images_are_not_trained_on_from_a_checkpoint(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(data_dir, tmp_path / "data")
    (folder / "weave" / "train" / "good" / "000.png").unlink()
    done = run(
        *("--config", "configs/mvtec.py:weave", f"--config.data_dir={folder}", *SMALL),
        *("--workdir", str(trained)),
    )
    assert_one_line(done, "was trained with other training images")


def test_a_category_is_gone_on_with_however_its_accents_are_spelled(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    composed, decomposed = "b\u00fcrste", "bu\u0308rste"
    shutil.copytree(data_dir / "weave", tmp_path / "data" / composed)
    shutil.copytree(trained / "weave", tmp_path / "work" / decomposed)
    of_data = f"--config.data_dir={tmp_path / 'data'}"
    common = ("--workdir", str(tmp_path / "work"), of_data)
    done = run("--config", f"configs/mvtec.py:{decomposed}", *SMALL, *common)
    assert done.returncode == 0, done.stderr
    assert "trained already, step 3 of 3" in done.stderr
    done = run("--mode", "eval", "--config", f"configs/mvtec.py:{composed}", *common)
    assert done.returncode == 0, done.stderr
    assert "evaluated already" in done.stderr
    assert not (tmp_path / "work" / composed).exists()
    assert rd_jax.restore(tmp_path / "work", composed)[2]["step"] == 3


def test_an_unfinished_training_is_evaluated_as_such(trained: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(trained, tmp_path / "copy")
    shutil.rmtree(workdir / "weave" / "checkpoints" / "3")
    (workdir / "empty" / "checkpoints").mkdir(parents=True)  # killed before its first save
    done = run(
        *("--mode", "eval", "--config", "configs/mvtec.py", "--workdir", str(workdir)),
        "--config.blur_sigma=2",
    )
    assert done.returncode == 0, done.stderr
    assert "**weave is UNFINISHED: step 2 of 3.**" in done.stdout


def test_a_loss_that_is_not_finite_stops_the_run(data_dir: Path, tmp_path: Path) -> None:
    done = run(
        *("--config", "configs/mvtec.py:weave", f"--config.data_dir={data_dir}", *SMALL),
        *("--config.learning_rate=1e38", "--workdir", str(tmp_path / "work")),
    )
    assert_one_line(done, "weave: the loss is not finite at step 2: lower --config.learning_rate")
    pattern = (
        r"last finite loss: \d\.\d+; last good checkpoint: there is none; images of this step: 0"
    )
    assert re.search(pattern, done.stderr)


def test_the_library_imports_where_there_is_only_what_its_functions_need() -> None:
    absent = "ml_collections tensorflow_datasets matplotlib huggingface_hub safetensors tqdm jinja2"
    code = f"import sys; sys.modules.update(dict.fromkeys({absent.split()})); import rd_jax"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_checkpoint_scores_images_from_python(trained: Path, data_dir: Path) -> None:
    model, student_variables, known = rd_jax.restore(trained, "weave")
    config = known["config"]
    assert (known["step"], known["last_step"], config["blur_sigma"]) == (3, 3, 4.0)
    teacher = rd_jax.load_teacher(model.backbone, config["teacher_weights"])
    path = data_dir / "weave" / "test" / "good" / "000.png"
    image = decode_image(path, config["image_size"])[0]
    maps, scores = rd_jax.make_scorer(model)(teacher, student_variables, image[None])
    assert maps.shape == (1, 32, 32)
    assert float(scores[0]) == float(maps.max())
    predictor = rd_jax.load_predictor(trained / "weave")
    (result,) = rd_jax.score_files(predictor, [path])
    assert result.score == pytest.approx(float(scores[0]), abs=1e-5)
    assert result.is_anomalous is None  # no hold-out
    assert rd_jax.score_arrays(predictor, image[None])[1] == pytest.approx(result.score, abs=1e-6)


@pytest.fixture(scope="module")
def trained_seeds(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One category, trained with two seeds."""
    workdir = tmp_path_factory.mktemp("seeds") / "work"
    done = run(
        *("--config", "configs/mvtec.py:weave", f"--config.data_dir={data_dir}", *SMALL),
        *("--config.seeds=(0,1)", "--workdir", str(workdir)),
    )
    assert done.returncode == 0, done.stderr
    assert "mean ± standard deviation over the seeds" in done.stdout
    return workdir


def test_a_finished_run_that_is_started_again_compiles_nothing(
    trained: Path, data_dir: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(trained, tmp_path / "copy")
    compiled, loaded = [], []
    listen = lambda event, *_, **__: compiled.append(event)  # noqa: E731
    command = (
        *("--config", "configs/mvtec.py", f"--config.data_dir={data_dir}", *SMALL),
        *("--workdir", str(workdir)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "load_rest", lambda *_: loaded.append(1))
        jax.clear_caches()
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            done = run(*command)
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("evaluated already") == 2
    assert not loaded
    assert sum("backend_compile" in event for event in compiled) <= 2  # of the random teacher's key


def test_images_that_are_not_square_keep_their_shape_from_training_to_heatmaps(
    data_dir: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "work"
    done = run(
        *("--config", "configs/mvtec.py:weave", f"--config.data_dir={data_dir}", *SMALL),
        *("--config.image_size=64,32", "--config.holdout=0.5", "--workdir", str(workdir)),
    )
    assert done.returncode == 0, done.stderr
    assert "64x32 pixels" in done.stdout
    assert results(workdir, "weave")["image_size"] == [64, 32]
    evaluation = read_evaluation(workdir / "weave" / "evaluation.npz")
    assert evaluation is not None
    assert evaluation.images.shape[1:] == (64, 32, 3)
    assert evaluation.strengths.shape[1:] == evaluation.masks.shape[1:] == (64, 32)
    again = run("--mode", "eval", "--config", "configs/mvtec.py:weave", "--workdir", str(workdir))
    assert "evaluated already" in again.stderr
    predictor = rd_jax.load_predictor(workdir)
    (path, *_) = sorted((data_dir / "weave" / "test" / "good").iterdir())
    (result,) = rd_jax.score_files(predictor, [path])
    assert isinstance(result, Prediction)
    assert result.anomaly_map.shape == (64, 32)
    stored = [*evaluation.names].index(f"good/{path.name}")
    assert result.score == pytest.approx(evaluation.scores[stored], rel=1e-5)


def test_fitted_images_count_within_their_pictures_from_training_to_heatmaps(
    data_dir: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "work"
    fitted = ("--config.image_size=64,32", "--config.resize=fit", "--config.holdout=0.5")
    done = run(
        *("--config", "configs/mvtec.py:weave", f"--config.data_dir={data_dir}", *SMALL),
        *(*fitted, "--config.num_epochs=1", "--workdir", str(workdir)),
    )
    assert done.returncode == 0, done.stderr
    assert "64x32 pixels, aspect ratio kept" in done.stdout
    evaluation = read_evaluation(workdir / "weave" / "evaluation.npz")
    assert evaluation is not None
    assert not evaluation.strengths[:, :16].any()  # square pictures in upright images
    assert not evaluation.strengths[:, 48:].any()
    predictor = rd_jax.load_predictor(workdir)
    paths = sorted((data_dir / "weave" / "test").glob("*/*.png"))
    scores = {}
    for result in rd_jax.score_files(predictor, paths):
        assert isinstance(result, Prediction)
        assert result.anomaly_map.shape == (32, 32)
        assert result.score == result.anomaly_map.max()
        scores[f"{result.path.parent.name}/{result.path.name}"] = result.score
    assert [scores[name] for name in evaluation.names] == pytest.approx(evaluation.scores, rel=1e-5)
    maps = [
        result.anomaly_map
        for result in rd_jax.score_files(predictor, paths)
        if isinstance(result, Prediction)
    ]
    masks = [
        np.zeros((32, 32), bool)
        if path.parent.name == "good"
        else np.asarray(
            Image.open(
                data_dir / "weave" / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
            ).resize((32, 32), Image.Resampling.BILINEAR)
        )
        > 127
        for path in paths
    ]
    expected = float(rd_jax.auroc(np.array(maps), np.array(masks)))
    assert results(workdir, "weave")["pixel_auroc"] == pytest.approx(expected, abs=1e-4)


def test_each_seed_is_a_training_of_its_own(trained: Path, trained_seeds: Path) -> None:
    rows = [results(trained_seeds / "weave", f"seed_{seed}") for seed in (0, 1)]
    alone = results(trained, "weave")
    assert {name: rows[0][name] for name in METRICS} == {name: alone[name] for name in METRICS}
    assert rows[1]["seed"] == 1
    assert rows[0]["pixel_auroc"] != rows[1]["pixel_auroc"]
    summary = results(trained_seeds, "weave")
    expected = (rows[0]["pixel_auroc"] + rows[1]["pixel_auroc"]) / 2
    assert summary["pixel_auroc"] == pytest.approx(expected)
    _, _, known = rd_jax.restore(trained_seeds, "weave/seed_1")
    assert (known["config"]["seed"], known["config"]["seeds"]) == (1, (0, 1))


def test_a_seed_is_evaluated_alone_or_with_all(trained_seeds: Path, tmp_path: Path) -> None:
    workdir = shutil.copytree(trained_seeds, tmp_path / "copy")
    for path in workdir.glob("weave/seed_*/results.json"):
        path.unlink()
    evaluation = ("--mode", "eval", "--config", "configs/mvtec.py", "--workdir", str(workdir))
    assert run(*evaluation, "--config.seeds=(1,)").returncode == 0
    assert results(workdir, "weave")["seeds"] == [1]
    assert run(*evaluation).returncode == 0
    assert results(workdir, "weave")["seeds"] == [0, 1]
    assert (workdir / "results.md").read_text() == (trained_seeds / "results.md").read_text()
    assert_one_line(run(*evaluation, "--config.seeds=(7,)"), "no checkpoint with seeds (7,)")
    done = run(*evaluation, "--config.seeds=(1,)", "--config.blur_sigma=1")
    assert_one_line(done, "the seeds of weave were evaluated with different blur_sigma")


def test_one_and_several_seeds_do_not_mix_in_a_folder(
    data_dir: Path, trained: Path, trained_seeds: Path
) -> None:
    common = ("--config", "configs/mvtec.py:weave", f"--config.data_dir={data_dir}", *SMALL)
    done = run(*common, "--config.seeds=(0,1)", "--workdir", str(trained))
    assert_one_line(done, "weave holds a training of one seed")
    done = run(*common, "--workdir", str(trained_seeds))
    assert_one_line(done, "weave holds trainings of several seeds")


def test_seeds_that_differ_in_more_are_not_averaged(data_dir: Path, trained_seeds: Path) -> None:
    done = run(
        *("--config", "configs/mvtec.py:weave", f"--config.data_dir={data_dir}", *SMALL),
        *("--config.seeds=2,3", "--config.learning_rate=0.1", "--workdir", str(trained_seeds)),
    )
    assert_one_line(done, "seed_0 was trained with another config: learning_rate (0.005, now 0.1)")
    assert not (trained_seeds / "weave" / "seed_2").exists()


def test_one_class_detection_from_the_command_line(tmp_path: Path) -> None:
    common = ("--config", "configs/one_class.py:digits", "--workdir", str(tmp_path))
    quick = ("--config.backbone=tiny", "--config.teacher_weights=random", "--config.num_epochs=1")
    for label in (3, 8):
        done = run(*common, *quick, f"--config.normal_class={label}")
        assert done.returncode == 0, done.stderr
        row = results(tmp_path, str(label))
        assert row["image_auroc"] == pytest.approx(row["image_auroc_sum"], abs=1e-4)
        assert row["image_auroc_max"] != row["image_auroc_sum"]
        assert row["pixel_auroc"] is None
    assert "\n| 3 | " in done.stdout
    assert "\n| 8 | " in done.stdout
    before = results(tmp_path, "3")
    done = run(*common, "--mode", "eval", "--config.normal_class=3", "--config.image_score=max")
    assert done.returncode == 0, done.stderr
    assert results(tmp_path, "3")["image_auroc"] == before["image_auroc_max"]
    assert_one_line(run(*common, *quick, "--config.normal_class=10"), "has the classes 0 to 9")
    other = ("--config", "configs/one_class.py:mnist", "--workdir", str(tmp_path))
    assert_one_line(run(*other, "--mode", "eval"), "dataset='mnist': the checkpoint in ")


def test_a_checkpoint_of_the_authors_code_is_evaluated(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="the extra `parity` is not installed")
    from tests.weights.rd4ad_test import write_checkpoint

    path, workdir = tmp_path / "res18_weave.pth", tmp_path / "work"
    write_checkpoint(path, "resnet18")
    common = (
        *("--config", "configs/mvtec.py", f"--config.data_dir={data_dir}", *SMALL),
        *("--config.backbone=resnet18", f"--config.rd4ad_checkpoint={path}"),
    )
    evaluation = (*common, "--mode", "eval", "--config.category=weave")
    done = run(*evaluation, "--workdir", str(workdir))
    assert done.returncode == 0, done.stderr
    assert "weave: the authors' checkpoint res18_weave.pth" in done.stdout
    assert "last step" not in done.stdout
    row = results(workdir, "weave")
    assert all(0 <= row[name] <= 1 for name in METRICS)
    assert row["num_steps"] is None
    assert_one_line(run(*evaluation, "--workdir", str(trained)), "weave holds a training")
    done = run(*common, "--mode", "eval", "--workdir", str(workdir))
    assert_one_line(done, "rd4ad_checkpoint is of one category: set --config.category")
    assert_one_line(run(*common, "--workdir", str(workdir)), "add --mode eval")


def broken(data_dir: Path, tmp_path: Path, problem: str) -> Path:
    """A copy of the data with one thing wrong."""
    root = shutil.copytree(data_dir, tmp_path / "data") / "weave"
    if problem == "empty category":
        for path in (root / "train" / "good").iterdir():
            path.unlink()
    if problem == "missing mask":
        (root / "ground_truth" / "stain" / "001_mask.png").unlink()
    if problem == "unreadable image":
        path = root / "test" / "good" / "001.png"
        path.write_bytes(path.read_bytes()[:200])
    return root.parent


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("empty category", "train/good holds no images"),
        ("missing mask", "ground_truth/stain/001_mask.png of test image"),
        ("unreadable image", "1 of 10 files cannot be read: "),
    ],
)
def test_a_problem_in_the_data_is_one_line(
    data_dir: Path, tmp_path: Path, problem: str, message: str
) -> None:
    folder = broken(data_dir, tmp_path, problem)
    done = run(
        *("--config", "configs/mvtec.py:weave", f"--config.data_dir={folder}", *SMALL),
        *("--workdir", str(tmp_path / "work")),
    )
    assert_one_line(done, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.data_dir=/no/such/folder"], "data_dir /no/such/folder is not a folder"),
        (["--config.category=screw"], "category 'screw' is not in data_dir"),
        (["--config.category=../weave"], "category '../weave' is not in data_dir"),
        (["--config.backbone=resnet19"], "config.backbone='resnet19': must be one of resnet10"),
        (["--config.image_size=100"], "config.image_size=100: must be a positive multiple of 32"),
        (["--config.teacher_weights=w.npz"], "teacher_weights w.npz is not a file"),
        (
            ["--config.teacher_weights=imagenet", "--config.backbone=resnet18"],
            "fetch https://huggingface.co/timm/resnet18",
        ),
        (["--config.bacbone=resnet18"], "bacbone"),
        (["--config.num_epochs=many"], "num_epochs"),
        (["--mode", "test"], "mode"),
        (["--config", "configs/absent.py"], "configs/absent.py"),
        (["--config", "README.md"], "(README.md, line"),
        (["--workdir", "/proc/work"], "/proc/work"),
        (["stray"], "unknown argument 'stray'"),
        (["--mode", "eval"], "no checkpoint in"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_on_the_command_line_is_one_line(
    data_dir: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = run(
        *("--config", "configs/mvtec.py", f"--config.data_dir={data_dir}", *SMALL),
        *("--workdir", str(tmp_path / "work"), *arguments),
    )
    assert_one_line(done, message)


def test_the_devices_must_divide_the_batch(data_dir: Path, tmp_path: Path) -> None:
    done = run(
        *("--config", "configs/mvtec.py", f"--config.data_dir={data_dir}", *SMALL),
        *("--workdir", str(tmp_path / "work"), "--config.batch_size=6"),
    )
    assert_one_line(done, "config.batch_size=6: must be a multiple of the 4 devices")


def test_another_teacher_or_config_than_trained_with_is_refused(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    shapes = {
        _torch_name(path): leaf.shape[::-1][:2] + leaf.shape[:2] if leaf.ndim == 4 else leaf.shape
        for path, leaf in flatten_dict(teacher_shapes("tiny")).items()
    }
    np.savez(tmp_path / "other.npz", **draw_state_dict(shapes))
    evaluation = ("--mode", "eval", "--config", "configs/mvtec.py", "--workdir", str(trained))
    done = run(*evaluation, f"--config.teacher_weights={tmp_path}/other.npz")
    assert_one_line(done, "was trained with the teacher weights random (sha256 ")
    for override in ("--config.backbone=resnet34", "--config.loss=flattened"):
        assert_one_line(run(*evaluation, override), "was trained with '")
    training = ("--config", "configs/mvtec.py", f"--config.data_dir={data_dir}", *SMALL)
    done = run(*training, "--config.learning_rate=0.1", "--workdir", str(trained))
    assert_one_line(done, "another config: learning_rate (0.005, now 0.1)")
