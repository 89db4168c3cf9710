"""Exported scorers, run as those who get the file run them."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from rd_jax import create_train_state, load_teacher
from rd_jax.config import Config, size_of
from rd_jax.data.decode import decode_image
from rd_jax.export import __main__ as export
from rd_jax.export.onnx_graph import to_onnx
from rd_jax.export.stablehlo import to_stablehlo
from rd_jax.method.models.batch_norm import fold_batch_norm
from rd_jax.predict.predictor import load_predictor
from rd_jax.run.build import model_of, optimizer_of, scorer_of, scoring_of
from rd_jax.store import checkpoint
from tests.trained import save_training

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text()


def example(part: str) -> str:
    """The documentation's Python code that holds this part."""
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if part in code]
    return code


class Trained(NamedTuple):
    """What an export takes, and what its scorer says of 16 images."""

    variables: tuple[Any, Any, Any]  # with the model first
    options: dict[str, Any]
    images: np.ndarray
    maps: np.ndarray
    scores: np.ndarray


def trained(config: Any) -> Trained:
    """Variables in which nothing is 0 or 1, and a threshold that splits the images."""
    rng = np.random.default_rng(0)

    def drawn(path: tuple, value: Any) -> np.ndarray:
        low, high = {"scale": (0.5, 1), "var": (0.5, 2)}.get(path[-1].key, (-0.3, 0.3))
        noise = rng.uniform(low, high, np.shape(value)).astype(np.float32)
        return np.asarray(value) if path[-1].key == "kernel" else noise

    teacher = load_teacher(config.backbone, config.teacher_weights, config.bottleneck == "pre")
    if config.teacher_weights == "random":
        teacher = jax.tree.map_with_path(drawn, teacher)
    student = create_train_state(
        model_of(config), optimizer_of(config), jax.random.key(0)
    ).student_variables
    student = jax.tree.map_with_path(drawn, student)
    size = size_of(config)
    images = rng.integers(0, 256, (16, *size, 3), np.uint8)
    images[::2] //= 4  # scores differ
    maps, scores = map(np.asarray, scorer_of(config)(teacher, student, images))
    options = dict(size=size, **scoring_of(config))
    options |= {"threshold": float(np.sort(scores)[7:9].mean())}
    return Trained((model_of(config), teacher, student), options, images, maps, scores)


def run_stablehlo(content: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    model = jax.export.deserialize(bytearray(content))
    return {k: np.asarray(v) for k, v in jax.jit(model.call)(images).items()}


def run_onnx(content: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


FORMATS = [(to_stablehlo, run_stablehlo), (to_onnx, run_onnx)]
VARIANTS = [
    dict(backbone="tiny", bottleneck="mff_oce"),
    dict(backbone="tiny", bottleneck="oce", image_score="sum", normalize=False),
    dict(backbone="tiny", bottleneck="pre", scales=(2,), blur_sigma=0),
    dict(backbone="tiny50", bottleneck="mff_oce", image_score="sum", scales=(1, 3)),
    dict(backbone="tiny", direction="forward", map_fusion="product", scales=(2, 3)),
    dict(backbone="tiny", image_size=(32, 64)),
]


def assert_same(outputs: dict[str, np.ndarray], expected: Trained, count: int) -> None:
    threshold = expected.options["threshold"]
    assert {k: v.dtype for k, v in outputs.items()} == dict(
        map=np.float32, score=np.float32, anomalous=np.bool_
    )
    np.testing.assert_allclose(outputs["map"], expected.maps[:count], atol=1e-4, rtol=0)
    # A sum is as large as the map has pixels.
    scale = max(1, np.abs(expected.scores).max())
    np.testing.assert_allclose(outputs["score"] / scale, expected.scores[:count] / scale, atol=1e-4)
    np.testing.assert_array_equal(outputs["anomalous"], expected.scores[:count] > threshold)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_files_give_the_scorers_maps_scores_and_verdicts_for_any_batch(
    config: Config, variant: dict
) -> None:
    config.update(variant)
    expected = trained(config)
    assert expected.maps.std() > 0.01
    assert 0 < (expected.scores > expected.options["threshold"]).sum() < 16
    # Other batches are compiled for a second each, and with one variant only.
    counts = {to_onnx: (1, 3, 16), to_stablehlo: (1, 3, 16) if variant is VARIANTS[0] else (3,)}
    for export_to, run in FORMATS:
        content = export_to(*expected.variables, **expected.options)
        for count in counts[export_to]:
            assert_same(run(content, expected.images[:count]), expected, count)


def test_files_give_the_scorers_maps_and_scores_with_the_real_teacher(
    config: Config, resnet18_npz: Path
) -> None:
    config.update(backbone="resnet18", teacher_weights=str(resnet18_npz), image_size=128)
    expected = trained(config)
    for export_to, run in FORMATS:
        assert_same(
            run(export_to(*expected.variables, **expected.options), expected.images[:3]),
            expected,
            3,
        )


def test_files_of_fitted_images_take_regions(config: Config) -> None:
    config.update(image_size=(32, 64), resize="fit")
    expected = trained(config)
    regions = np.array([[0, 0, 32, 64], [4, 0, 24, 64], [0, 10, 32, 40]], np.int32)
    options = expected.options | {"resize": "fit", "threshold": None}
    scorer, images = scorer_of(config), expected.images[:3]
    maps, scores = scorer(*expected.variables[1:], images, regions)
    assert np.count_nonzero(maps[1:] == 0) > 500
    exported = jax.export.deserialize(bytearray(to_stablehlo(*expected.variables, **options)))
    session = onnxruntime.InferenceSession(to_onnx(*expected.variables, **options))
    for outputs in (
        jax.jit(exported.call)(images, regions),
        dict(
            zip(
                ("map", "score"),
                session.run(["map", "score"], dict(images=images, regions=regions)),
                strict=True,
            )
        ),
    ):
        np.testing.assert_allclose(outputs["map"], maps, atol=1e-5)
        np.testing.assert_allclose(outputs["score"], scores, atol=1e-5)


def test_what_the_user_of_a_file_has_to_know_comes_with_it(training: Path, tmp_path: Path) -> None:
    calibration = load_predictor(training).calibration
    for suffix in ("stablehlo", "onnx"):
        assert run_command(training, tmp_path / f"model.{suffix}") == 0
    known = json.loads((tmp_path / "model.stablehlo.json").read_text())
    assert (known["height"], known["width"], known["resize"]) == (32, 32, "stretch")
    assert known["categories"] == ["weave"]
    assert known["image_threshold"] == calibration.image_threshold
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    assert {name: json.loads(text) for name, text in metadata.items()} == known


def test_the_pages_function_prepares_images_as_training_does(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(example("def prepare"), names)
    for shape in ((50, 90), (90, 50), (64, 32), (17, 17)):
        pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        for resize in ("stretch", "fit"):
            own, region = decode_image(tmp_path / "a.png", (96, 64), resize=resize)
            prepared, place = names["prepare"](tmp_path / "a.png", 96, 64, resize)
            np.testing.assert_array_equal(prepared, own)
            assert tuple(place) == region


def test_the_onnx_model_is_valid_and_the_networks_are_all_in_it(config: Config) -> None:
    expected = trained(config)
    model = onnx.load_from_string(to_onnx(*expected.variables, **expected.options))
    onnx.checker.check_model(model, full_check=True)
    assert not any(constant.external_data for constant in model.graph.initializer)
    values = sum(np.prod(c.dims) for c in model.graph.initializer if c.name[-2] == "/")
    folded = [fold_batch_norm(variables) for variables in expected.variables[1:]]
    assert values >= sum(leaf.size for leaf in jax.tree.leaves(folded))


def test_stablehlo_is_float32_and_the_same_wherever_it_is_exported(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trained(config)
    here = to_stablehlo(*expected.variables, **expected.options)
    exported = jax.export.deserialize(bytearray(here))
    assert {"cpu", "cuda", "tpu"} <= set(exported.platforms)
    module = exported.mlir_module()
    assert "bf16" not in module
    products = re.findall(r"stablehlo\.(?:convolution|dot_general)\b.*", module)
    assert len(products) > 30
    assert all(product.count("HIGHEST") == 2 for product in products)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    config.dtype = "auto"
    variables = model_of(config), *expected.variables[1:]
    assert np.dtype(variables[0].dtype) == "bfloat16"
    assert to_stablehlo(*variables, **expected.options) == here
    assert str(Path(__file__).parents[2]).encode() not in here


@pytest.mark.parametrize(("export_to", "run"), FORMATS, ids=["stablehlo", "onnx"])
def test_without_a_threshold_there_is_no_verdict(config: Config, export_to: Any, run: Any) -> None:
    expected = trained(config)
    content = export_to(*expected.variables, **expected.options | {"threshold": None})
    outputs = run(content, expected.images[:1])
    assert set(outputs) == {"map", "score"}


def test_without_the_package_onnx_the_error_says_what_to_install(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"pip install onnx"):
        to_onnx(model_of(config), {}, {}, size=32)


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """The folder of a training that is finished and evaluated."""
    return save_training(tmp_path / "weave")


@pytest.fixture(autouse=True)
def _logging_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "log_to_stderr", lambda: None)


def run_command(training: Path, output: Path, *more: str) -> int:
    return export.main(["--workdir", str(training), "--output", str(output), *more])


@pytest.mark.parametrize(
    ("example", "suffix", "absent"),
    [
        (
            example("model.stablehlo"),
            ".stablehlo",
            ("rd_jax", "flax", "orbax", "onnx", "ml_collections"),
        ),
        (
            example("onnxruntime.InferenceSession"),
            ".onnx",
            ("rd_jax", "flax", "orbax", "onnx", "ml_collections", "jax"),
        ),
        (
            example("openvino.Core"),
            ".onnx",
            ("rd_jax", "flax", "orbax", "onnx", "ml_collections", "jax"),
        ),
    ],
)
def test_the_examples_run_without_this_package(
    config: Config,
    training: Path,
    tmp_path: Path,
    example: str,
    suffix: str,
    absent: tuple[str, ...],
) -> None:
    assert run_command(training, tmp_path / f"model{suffix}") == 0
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    without = f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", without + example],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *shapes, first, second, third = done.stdout.splitlines()
    assert "openvino" in example or "'map': (3, 32, 32)" in shapes[0]
    rows = [first, second, third]
    trained = checkpoint.load_latest(training / "checkpoints")
    teacher = load_teacher("tiny", "random")
    _, scores = scorer_of(config)(teacher, trained.student_variables, images)
    np.testing.assert_allclose([float(row.split()[0]) for row in rows], scores, atol=1e-4)
    threshold = load_predictor(training).calibration.image_threshold
    verdicts = ["anomalous" if score > threshold else "normal" for score in scores]
    assert [row.split()[1] for row in rows] == verdicts


def test_the_command_says_what_the_file_takes_and_gives(
    training: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run_command(training, tmp_path / "model.onnx") == 0
    said = capsys.readouterr().out
    assert "uint8 [B, 32, 32, 3]" in said
    threshold = load_predictor(training).calibration.image_threshold
    assert f"anomalous [B] (Threshold {threshold:.4g} of scores in float32" in said
    assert run_command(training, tmp_path / "model.onnx", "--false_positive_rate=0.5") == 0
    lower = load_predictor(training, false_positive_rate=0.5).calibration.image_threshold
    assert lower < threshold
    assert f"Threshold {lower:.4g}" in capsys.readouterr().out

    without = save_training(tmp_path / "other", holdout=False)
    assert run_command(without, tmp_path / "model.onnx") == 0
    assert "No thresholds" in capsys.readouterr().out
    model = onnx.load(tmp_path / "model.onnx")  # the old file is replaced
    assert [output.name for output in model.graph.output] == ["map", "score"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "other", "weave"]


def test_an_unfinished_training_is_exported_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_training(tmp_path / "weave", holdout=None, last_step=9)
    with caplog.at_level(logging.WARNING, "rd_jax.export"):
        assert run_command(folder, tmp_path / "model.onnx") == 0
    assert "UNFINISHED training: exported is step 7 of 9" in caplog.text


def test_mistakes_are_one_line_and_leave_the_old_file(
    training: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old.onnx"
    old.write_text("old")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "teacher.npz").write_bytes(b"")

    def assert_error(said: str, training: Path, output: Path, *more: str) -> None:
        assert run_command(training, output, *more) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert said in captured.err
        assert captured.err.count("\n") == 1
        assert old.read_text() == "old"
        assert not list(tmp_path.glob(".*"))

    assert_error("no checkpoint", tmp_path / "nowhere", old)
    assert_error("must be one of .stablehlo, .onnx", training, tmp_path / "model.pb")
    assert_error("there is no folder", training, tmp_path / "missing" / "model.onnx")
    assert_error("is a folder: name a file", training, tmp_path / "folder.onnx")
    assert_error("unrecognized arguments: --what", training, old, "--what")
    assert_error("not a readable npz", training, old, f"--teacher_weights={tmp_path}/teacher.npz")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full")))
    assert_error("disk full", training, old)
