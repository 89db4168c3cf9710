"""What an earlier version left is continued, evaluated, predicted with and exported as it was.

tests/golden/trained.tar.xz was made by the code before the rooms (commit a24c319) with the backbone
"micro" on one CPU device: data/, its training in work/ (steps 4 and 6 of 6), predictions.csv,
model.stablehlo, its outputs maps.npz of `draw_images(3, 32)`, and ten_losses.npy in float64.
"""

import csv
import shutil
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from rd_jax import create_train_state, load_teacher, make_train_step
from rd_jax.config import FIELDS
from rd_jax.export import __main__ as export
from rd_jax.method.models import Model
from rd_jax.predict import __main__ as predict
from rd_jax.run.build import optimizer_of
from rd_jax.run.trained import load_trained
from rd_jax.store.rows import read_json, write_json
from tests.command import METRICS, captured, run, start
from tests.reference_weights import draw_images

ARCHIVE = Path(__file__).parents[1] / "golden" / "trained.tar.xz"
FIGURES = (*METRICS, "image_threshold", "pixel_threshold", "image_precision", "image_recall")


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


# Its pixels had the rate of images.
RATES = ("--config.false_positive_rate=0.01", "--config.pixel_false_positive_rate=0.01")


def figures(workdir: Path) -> dict[str, float]:
    row = read_json(workdir / "weave" / "results.json")
    return {name: row[name] for name in FIGURES}


def test_the_same_command_goes_on_from_the_middle(golden: Path) -> None:
    work = golden / "work"
    expected = figures(work)
    shutil.rmtree(work / "weave" / "checkpoints" / "6")
    (work / "weave" / "results.json").unlink()
    done = start(
        *("--config", "mvtec:weave", f"--config.data_dir={golden}/data", "--workdir", str(work)),
        *("--config.backbone=micro", "--config.teacher_weights=random", "--config.image_size=32"),
        *("--config.batch_size=4", "--config.num_epochs=6", "--config.learning_rate=0.002"),
        *("--config.holdout=0.34", "--config.checkpoint_every_epochs=2"),
        *("--config.eval_every_epochs=2", "--config.log_every_steps=1", *RATES),
        JAX_NUM_CPU_DEVICES="1",
    )
    assert done.returncode == 0, done.stderr
    assert "steps 4 to 6" in done.stderr
    # Adam magnifies what is rounded otherwise; the losses below, in float64, are exact.
    assert figures(work) == pytest.approx(expected, abs=1e-3)


def test_it_is_evaluated_again(golden: Path) -> None:
    work = golden / "work"
    expected = figures(work)
    evaluation = ("--mode", "eval", "--config", "mvtec", "--workdir", str(work))
    data = (f"--config.data_dir={golden}/data",)
    done = start(*evaluation, *data, *RATES, JAX_NUM_CPU_DEVICES="1")
    assert done.returncode == 0, done.stderr
    # Pixels were sorted; now those that differ by 1 part in 65536 are one level.
    assert figures(work) == pytest.approx(expected, abs=1e-5)


def test_fields_and_metrics_that_were_not_there_yet_have_defaults(golden: Path) -> None:
    path = golden / "work" / "weave" / "results.json"
    row = read_json(path)
    for name in ("pixel_ap", "bottleneck", "holdout", "num_held_out", "images_per_second"):
        del row[name]
    write_json(path, row)
    # Another category, so that the page and the tables are written anew.
    shutil.copytree(golden / "data" / "weave", golden / "data" / "cloth")
    done = run(
        *("--config", "mvtec:cloth", f"--config.data_dir={golden}/data"),
        *("--config.backbone=micro", "--config.teacher_weights=random", "--config.image_size=32"),
        *("--config.batch_size=4", "--config.num_epochs=1", "--workdir", str(golden / "work")),
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("| weave |")]
    assert line.count("n/a") == 1
    assert set(load_trained(golden / "work" / "weave").config) == set(FIELDS)


def score_normal_images(golden: Path) -> None:
    """What thresholds come from, and the archive does not hold."""
    done = run(
        *("--mode", "eval", "--config", "mvtec", "--workdir", str(golden / "work")),
        f"--config.data_dir={golden}/data",
    )
    assert done.returncode == 0, done.stderr


def test_it_predicts_what_it_predicted(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(golden)
    done = captured(predict.main, ["--workdir", "work", "data/weave/test", "--output", "out"])
    assert done.returncode == 2
    assert "let python -m rd_jax.main --mode eval score them" in done.stderr
    score_normal_images(golden)
    done = captured(predict.main, ["--workdir", "work", "data/weave/test", "--output", "out"])
    assert done.returncode == 0, done.stderr
    found, expected = (
        list(csv.DictReader(Path(path).read_text().splitlines()))
        for path in ("out/predictions.csv", "predictions.csv")
    )
    for row, before in zip(found, expected, strict=True):
        for name in ("score", "threshold"):
            assert float(row.pop(name)) == pytest.approx(float(before.pop(name)), rel=1e-6)
        assert row == before


def test_exported_files_give_the_same_maps(golden: Path) -> None:
    score_normal_images(golden)
    arguments = ["--workdir", str(golden / "work"), "--output", str(golden / "new.stablehlo")]
    done = captured(export.main, arguments)
    assert done.returncode == 0, done.stderr
    with np.load(golden / "maps.npz") as file:
        expected = dict(file)
    for name in ("model.stablehlo", "new.stablehlo"):
        model = jax.export.deserialize(bytearray((golden / name).read_bytes()))
        outputs = jax.jit(model.call)(draw_images(3, 32))
        assert set(outputs) == set(expected)
        for key, value in outputs.items():
            np.testing.assert_allclose(np.asarray(value, np.float64), expected[key], rtol=1e-6)


def test_ten_steps_have_the_same_losses(golden: Path, config) -> None:
    def wide(tree: object) -> object:
        return jax.tree.map(lambda x: np.asarray(x, "f8" if x.dtype == np.float32 else None), tree)

    with jax.enable_x64(True):  # in float32 Adam magnifies the rounding
        model, optimizer = Model("tiny", dtype=np.float64), optimizer_of(config)
        teacher = wide(load_teacher("tiny", "random"))
        state = wide(create_train_state(model, optimizer, jax.random.key(0)))
        step, losses = jax.jit(make_train_step(model, optimizer)), []
        for i in range(10):
            state, metrics = step(state, teacher, draw_images(4, 32, seed=i))
            losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, np.load(golden / "ten_losses.npy"), rtol=1e-6)
