"""Exported scorers, run as those who get the file run them."""

import dataclasses
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import onnxruntime
import optax
import pytest
from PIL import Image

from rd_jax import (
    Model,
    create_train_state,
    load_predictor,
    load_teacher,
    make_scorer,
    score_files,
)
from rd_jax.data.decode import placed, read_image
from rd_jax.export import __main__ as export
from rd_jax.export.onnx import to_onnx
from rd_jax.export.stablehlo import to_stablehlo
from rd_jax.method.score import Scoring, Size, height_and_width
from rd_jax.run.trained import load_trained
from rd_jax.system.errors import UserError
from tests.command import Done, captured
from tests.trained import save_training

PAPERS = Scoring()
PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text()


def example(part: str) -> str:
    """The documentation's Python code that holds this part."""
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if part in code]
    return code


class Case(NamedTuple):
    """What an export takes, and what its scorer says of 16 images."""

    variables: tuple[Any, Any, Any]  # with the model first
    options: dict[str, Any]
    images: np.ndarray
    maps: np.ndarray
    scores: np.ndarray


def case(size: Size = 32, scoring: Scoring = PAPERS, weights: str = "random", **fields: Any):
    """Variables in which nothing is 0 or 1, and a threshold that splits the images."""
    rng = np.random.default_rng(0)

    def drawn(path: tuple, value: Any) -> np.ndarray:
        low, high = {"scale": (0.5, 1), "var": (0.5, 2)}.get(path[-1].key, (-0.3, 0.3))
        noise = rng.uniform(low, high, np.shape(value)).astype(np.float32)
        return np.asarray(value) if path[-1].key == "kernel" else noise

    model = Model(**{"backbone": "tiny10", **fields})
    teacher = load_teacher(model.backbone, weights, model.bottleneck == "pre")
    if weights == "random":
        teacher = jax.tree.map_with_path(drawn, teacher)
    state = create_train_state(model, optax.sgd(0.1), jax.random.key(0))
    student = jax.tree.map_with_path(drawn, state.student_variables)
    images = rng.integers(0, 256, (16, *height_and_width(size), 3), np.uint8)
    images[::2] //= 4  # scores differ
    scorer = make_scorer(model, **dataclasses.asdict(scoring))
    maps, scores = map(np.asarray, scorer(teacher, student, images))
    options = dict(size=size, scoring=scoring, threshold=float(np.sort(scores)[7:9].mean()))
    return Case((model, teacher, student), options, images, maps, scores)


@pytest.fixture(scope="module")
def default() -> Case:
    """The method's own settings."""
    return case()


def run_stablehlo(content: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    model = jax.export.deserialize(bytearray(content))
    return {k: np.asarray(v) for k, v in jax.jit(model.call)(images).items()}


def run_onnx(content: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


NEEDS_JAX2ONNX = pytest.mark.skipif(
    find_spec("jax2onnx") is None, reason="jax2onnx is not installed (make install EXTRAS=onnx)"
)
IN_EACH_FORMAT = pytest.mark.parametrize(
    ("export_to", "run"),
    [
        pytest.param(to_stablehlo, run_stablehlo, id="stablehlo"),
        pytest.param(to_onnx, run_onnx, id="onnx", marks=NEEDS_JAX2ONNX),
    ],
)
VARIANTS = [
    dict(bottleneck="oce", scoring=Scoring(reduction="sum"), normalize=False),
    dict(bottleneck="pre", scales=(2,), scoring=Scoring(sigma=0)),
    dict(backbone="tiny50", scales=(1, 3), scoring=Scoring(fusion="product")),
    dict(direction="forward", scales=(2, 3), size=(32, 64)),
]


def assert_same(outputs: dict[str, np.ndarray], expected: Case, count: int) -> None:
    threshold = expected.options["threshold"]
    assert {k: v.dtype for k, v in outputs.items()} == dict(
        map=np.float32, score=np.float32, anomalous=np.bool_
    )
    np.testing.assert_allclose(outputs["map"], expected.maps[:count], atol=1e-5, rtol=0)
    # A sum is as large as the map has pixels.
    scale = max(1, np.abs(expected.scores).max())
    np.testing.assert_allclose(outputs["score"] / scale, expected.scores[:count] / scale, atol=1e-5)
    np.testing.assert_array_equal(outputs["anomalous"], expected.scores[:count] > threshold)


@IN_EACH_FORMAT
def test_files_give_the_scorers_maps_scores_and_verdicts_for_any_batch(
    default: Case, export_to: Callable[..., bytes], run: Callable[..., Any]
) -> None:
    assert default.maps.std() > 0.01
    assert 0 < (default.scores > default.options["threshold"]).sum() < 16
    content = export_to(*default.variables, **default.options)
    for count in (1, 3, 16):
        assert_same(run(content, default.images[:count]), default, count)
    without = export_to(*default.variables, size=32)
    assert set(run(without, default.images[:1])) == {"map", "score"}


@NEEDS_JAX2ONNX
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_onnx_gives_the_scorers_maps_whatever_the_model_and_the_scoring(variant: dict) -> None:
    expected = case(**variant)
    assert expected.maps.std() > 0.01
    content = to_onnx(*expected.variables, **expected.options)
    assert_same(run_onnx(content, expected.images[:3]), expected, 3)


@NEEDS_JAX2ONNX
def test_onnx_gives_the_scorers_maps_and_scores_with_the_real_teacher(resnet18_npz: Path) -> None:
    expected = case(64, backbone="resnet18", weights=str(resnet18_npz))
    content = to_onnx(*expected.variables, **expected.options)
    assert_same(run_onnx(content, expected.images[:3]), expected, 3)


@NEEDS_JAX2ONNX
def test_the_onnx_model_is_valid_and_whole_and_for_runtimes_that_are_not_new(
    default: Case,
) -> None:
    import onnx

    model = onnx.load_from_string(to_onnx(*default.variables, **default.options))
    onnx.checker.check_model(model, full_check=True)
    assert [(x.domain, x.version) for x in model.opset_import] == [("", 18)]
    assert model.ir_version == 8
    assert not any(constant.external_data for constant in model.graph.initializer)
    assert str(Path(__file__).parents[2]).encode() not in model.SerializeToString()


def test_stablehlo_is_float32_and_the_same_wherever_it_is_exported(
    default: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = to_stablehlo(*default.variables, **default.options)
    exported = jax.export.deserialize(bytearray(here))
    assert {"cpu", "cuda", "tpu"} <= set(exported.platforms)
    module = exported.mlir_module()
    assert "bf16" not in module
    products = re.findall(r"stablehlo\.(?:convolution|dot_general)\b.*", module)
    assert len(products) > 30
    assert all(product.count("HIGHEST") == 2 for product in products)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    model, *variables = default.variables
    for_tpu = dataclasses.replace(model, dtype="bfloat16")
    assert to_stablehlo(for_tpu, *variables, **default.options) == here
    assert str(Path(__file__).parents[2]).encode() not in here


@NEEDS_JAX2ONNX
def test_without_a_jax2onnx_that_works_the_error_says_what_to_install(
    default: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    import jax2onnx

    def fails(*_: object, **__: object) -> None:
        raise AttributeError("module 'jax._src.core' has no attribute 'ClosedJaxpr'")

    monkeypatch.setattr(jax2onnx, "to_onnx", fails)
    with pytest.raises(UserError, match=r"jax2onnx fails with JAX .* 'jax<0.12'"):
        to_onnx(*default.variables, size=32)
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r"pip install 'jax2onnx==0.17.1'"):
        to_onnx(Model("tiny"), {}, {}, size=32)


def of_16_bits(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**16, size, np.uint16)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def forms(size: tuple[int, int]) -> dict[str, Callable[[Path], None]]:
    """A function for each form of picture that is read, by file name, which saves one."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
    alpha = Image.fromarray(rng.integers(0, 256, (*size, 4), np.uint8), "RGBA")
    deep, grey, palette = Image.fromarray(of_16_bits(size)), image.convert("L"), image.quantize(16)
    transparent = {"transparency": bytes([0, 128, *[255] * 14])}
    saved: dict[str, tuple[Image.Image, dict]] = {
        "rgb.png": (image, {}),
        "alpha.png": (alpha, {}),
        "grey_alpha.png": (alpha.convert("LA"), {}),
        "grey.png": (grey, {}),
        "colour_key.png": (grey, {"transparency": 7}),
        "bits.png": (image.convert("1"), {}),
        "palette.png": (palette, {}),
        "transparent.png": (palette, transparent),
        "deep.png": (deep, {}),
        "deep.tif": (deep, {}),
        "negative.tif": (deep, {"tiffinfo": {262: 0}}),
        "deep.jp2": (deep, {"irreversible": False}),
        "deep.pgm": (deep, {}),
        "rgb.jpg": (image, {}),
        "cmyk.jpg": (image.convert("CMYK"), {}),
        "cmyk.tif": (image.convert("CMYK"), {}),
        "rgb.webp": (image, {}),
        "alpha.webp": (alpha, {"lossless": True}),
        "rgb.avif": (image, {}),
        "rgb.bmp": (image, {}),
        "palette.gif": (palette, {}),
        "rgb.ppm": (image, {}),
        **{f"turned_{i}.jpg": (image, {"exif": turned(i)}) for i in range(1, 9)},
        "turned.png": (image, {"exif": turned(6)}),
        "turned_deep.png": (deep, {"exif": turned(5)}),
        "turned.tif": (image, {"tiffinfo": {274: 8}}),
        "turned_deep.tif": (deep, {"tiffinfo": {274: 6}}),
    }
    return {name: lambda path, i=i, o=o: i.save(path, **o) for name, (i, o) in saved.items()}


SHAPES = ((50, 90), (17, 17), (2, 1400), (1400, 2))


@pytest.mark.parametrize("form", forms(SHAPES[0]))
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_the_pages_function_prepares_pictures_as_training_does(tmp_path: Path, form: str) -> None:
    names: dict[str, Any] = {}
    exec(example("def prepare"), names)
    path = tmp_path / form
    for shape in SHAPES:
        forms(shape)[form](path)
        for resize in ("stretch", "fit"):
            own, region = placed(read_image(path), (96, 64), resize)
            prepared, place = names["prepare"](path, 96, 64, resize)
            np.testing.assert_array_equal(prepared, own)
            assert tuple(place) == region


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that is finished and evaluated."""
    return save_training(tmp_path_factory.mktemp("run") / "weave")


@pytest.fixture(autouse=True)
def _devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "require_devices", lambda: None)


@pytest.fixture
def _quick_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is exported is not the point."""
    monkeypatch.setitem(
        export.FORMATS, ".stablehlo", lambda *_, threshold, **__: f"{threshold}".encode()
    )


def run_command(training: Path, output: Path, *more: str) -> Done:
    return captured(export.main, ["--workdir", str(training), "--output", str(output), *more])


@pytest.mark.parametrize(
    ("example", "suffix", "absent"),
    [
        (
            example("compiles once"),
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
    ids=["stablehlo", "onnxruntime", "openvino"],
)
def test_the_examples_run_without_this_package(
    training: Path, tmp_path: Path, example: str, suffix: str, absent: tuple[str, ...]
) -> None:
    if suffix == ".onnx":
        pytest.importorskip("jax2onnx")
    if "openvino" in example:
        pytest.importorskip("openvino")
    assert run_command(training, tmp_path / f"model{suffix}").returncode == 0
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
    trained = load_trained(training)
    scorer = make_scorer(trained.model)
    _, scores = scorer(trained.teacher.variables, trained.checkpoint.student_variables, images)
    np.testing.assert_allclose([float(row.split()[0]) for row in rows], scores, atol=1e-4)
    threshold = trained.thresholds.image_threshold
    verdicts = ["anomalous" if score > threshold else "normal" for score in scores]
    assert [row.split()[1] for row in rows] == verdicts


def test_the_pages_script_goes_from_files_to_verdicts_and_overlays_without_this_package(
    training: Path, tmp_path: Path
) -> None:
    assert run_command(training, tmp_path / "model.stablehlo").returncode == 0
    (tmp_path / "new_images").mkdir()
    shapes = {"a.png": (50, 90), "b.png": (20, 20)}
    for name, shape in shapes.items():
        forms(shape)["rgb.png"](tmp_path / "new_images" / name)
    without = "import sys; sys.modules.update(dict.fromkeys(('rd_jax', 'flax', 'orbax')))\n"
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", without + example("def prepare")],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    predictor = load_predictor(training)
    results = list(score_files(predictor, [tmp_path / "new_images" / name for name in shapes]))
    for (name, score, verdict), result in zip(rows, results, strict=True):
        assert Path(name).name == result.path.name
        assert float(score) == pytest.approx(result.score, abs=1e-4)
        assert verdict == ("anomalous" if result.is_anomalous else "normal")
        shown = np.asarray(Image.open(tmp_path / f"{result.path.stem}_overlay.png"), int)
        plain, _ = placed(read_image(result.path), (32, 32), "stretch")
        low, high = predictor.thresholds.map_low, predictor.thresholds.map_high
        share = np.clip((result.anomaly_map - low) / (high - low), 0, 1)[..., None] / 2
        expected = share * [255, 0, 0] + (1 - share) * plain
        np.testing.assert_allclose(shown, expected, atol=3)


@NEEDS_JAX2ONNX
def test_an_exported_file_comes_with_the_facts_that_its_user_needs(
    training: Path, tmp_path: Path
) -> None:
    for suffix in ("stablehlo", "onnx"):
        done = run_command(training, tmp_path / f"model.{suffix}")
        assert done.returncode == 0
        assert "uint8 [B, 32, 32, 3]" in done.stdout
        assert done.stderr.count("\n") == 1  # of the random teacher
    known = json.loads((tmp_path / "model.stablehlo.json").read_text())
    assert (known["height"], known["width"], known["resize"]) == (32, 32, "stretch")
    assert known["categories"] == ["weave"]
    threshold = load_trained(training).thresholds.image_threshold
    assert known["image_threshold"] == threshold
    assert f"anomalous [B] (Threshold {threshold:.4g}" in done.stdout
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    assert {name: json.loads(text) for name, text in metadata.items()} == known
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("model.onnx", "model.stablehlo", "model.stablehlo.json")
    ]


@pytest.mark.usefixtures("_quick_format")
def test_another_rate_or_training_replaces_model_and_facts(training: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.stablehlo"

    def written(folder: Path, *more: str) -> tuple[float | None, Done]:
        done = run_command(folder, output, *more)
        assert done.returncode == 0
        known = json.loads((tmp_path / "model.stablehlo.json").read_text())
        assert output.read_text() == str(known["image_threshold"])
        return known["image_threshold"], done

    usual, _ = written(training)
    lower, done = written(training, "--false_positive_rate=0.5")
    assert usual is not None
    assert lower < usual
    assert f"Threshold {lower:.4g}" in done.stdout
    chosen, done = written(training, "--threshold=0.375")
    assert chosen == 0.375
    assert "Threshold 0.375, chosen by you: its rate of false alarms is unknown" in done.stdout
    threshold, _ = written(save_training(tmp_path / "free", holdout=False), "--threshold=0.25")
    assert threshold == 0.25
    threshold, done = written(save_training(tmp_path / "other", holdout=False))
    assert threshold is None
    assert "No thresholds" in done.stdout
    threshold, done = written(save_training(tmp_path / "begun", holdout=None, last_step=9))
    assert threshold is None
    assert "UNFINISHED training: the export is of step 7 of 9" in done.stderr
    done = run_command(save_training(tmp_path / "scored", holdout=None), output)
    assert done.returncode == 2
    assert "has no thresholds: run python -m rd_jax.main --mode eval" in done.stderr


@pytest.fixture
def limit_files_to() -> Iterator[Callable[[int], None]]:
    """Lets no file grow beyond so many bytes: what a full disk is like."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("_quick_format")
@pytest.mark.parametrize("limit", [0, 10, 100])
def test_on_a_full_disk_the_old_model_and_its_facts_stay(
    training: Path, tmp_path: Path, limit_files_to: Callable[[int], None], limit: int
) -> None:
    output = tmp_path / "model.stablehlo"
    assert run_command(training, output).returncode == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    limit_files_to(limit)
    done = run_command(training, output, "--false_positive_rate=0.5")
    assert done.returncode == 2
    assert "File too large" in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.usefixtures("_quick_format")
def test_mistakes_are_one_line_and_leave_the_old_file(
    training: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old.stablehlo"
    old.write_text("old")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "teacher.npz").write_bytes(b"")

    def assert_error(said: str, training: Path, output: Path, *more: str) -> None:
        done = run_command(training, output, *more)
        assert done.returncode == 2
        assert done.stdout == ""
        (line,) = [line for line in done.stderr.splitlines() if "the teacher tiny" not in line]
        assert line.startswith("error: ")
        assert said in line
        assert old.read_text() == "old"
        assert not list(tmp_path.glob(".*"))

    assert_error("no checkpoint", tmp_path / "nowhere", old)
    assert_error("must be one of .stablehlo, .onnx", training, tmp_path / "model.pb")
    assert_error("there is no folder", training, tmp_path / "missing" / "model.onnx")
    assert_error("is a folder: name a file", training, tmp_path / "folder.onnx")
    assert_error("unrecognized arguments: --what", training, old, "--what")
    assert_error("must be ", training, old, "--false_positive_rate=2")
    assert_error("--threshold=nan: must be a finite number", training, old, "--threshold=nan")
    begun = save_training(tmp_path / "begun", holdout=None, last_step=9)
    assert_error("is not evaluated", begun, old, "--threshold=0.5")
    assert_error("not a readable npz", training, old, f"--teacher_weights={tmp_path}/teacher.npz")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full")))
    assert_error("disk full", training, old)
