"""What earlier code computed is computed still; its workdirs get one line.

tests/golden/trained.tar.xz was made by an earlier version (commit a24c319) with the backbone
"micro" on one CPU device: data/, its training in work/, model.stablehlo, its outputs maps.npz of
`draw_images(3, 32)`, and ten_losses.npy in float64.
"""

import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from rd_jax import Model, create_train_state, load_teacher, make_train_step
from rd_jax.export import __main__ as export
from rd_jax.predict import __main__ as predict
from rd_jax.run.plan import optimizer_of
from tests.command import assert_one_line, captured, evaluation, run, training
from tests.reference_weights import draw_images
from tests.run.hosts_worker import wide

ARCHIVE = Path(__file__).parents[1] / "golden" / "trained.tar.xz"


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_ten_steps_have_the_same_losses(golden: Path, config) -> None:
    with jax.enable_x64(True):  # in float32 Adam magnifies the rounding
        model, optimizer = Model("tiny10", dtype=np.float64), optimizer_of(config)
        teacher = wide(load_teacher("tiny10", "random"))
        state = wide(create_train_state(model, optimizer, jax.random.key(0)))
        step, losses = jax.jit(make_train_step(model, optimizer)), []
        for i in range(10):
            state, metrics = step(state, teacher, draw_images(4, 32, seed=i))
            losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, np.load(golden / "ten_losses.npy"), rtol=1e-6)


def test_an_exported_file_gives_the_same_maps(golden: Path) -> None:
    model = jax.export.deserialize(bytearray((golden / "model.stablehlo").read_bytes()))
    outputs = jax.jit(model.call)(draw_images(3, 32))
    with np.load(golden / "maps.npz") as expected:
        assert set(outputs) == set(expected)
        for name, value in outputs.items():
            np.testing.assert_allclose(np.asarray(value, np.float64), expected[name], rtol=1e-6)


def test_a_workdir_of_earlier_code_is_refused_in_one_line(golden: Path, tmp_path: Path) -> None:
    work = golden / "work"
    before = sorted(work.rglob("*"))
    message = "earlier version"
    assert_one_line(run(*training(golden / "data", work)), message)
    assert_one_line(run(*evaluation(work)), message)
    common = ["--workdir", str(work), "--output", str(tmp_path / "out.onnx")]
    images = str(golden / "data" / "weave" / "test")
    assert_one_line(captured(predict.main, [*common, images]), message)
    assert_one_line(captured(export.main, common), message)
    assert sorted(work.rglob("*")) == before
