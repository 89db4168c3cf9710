"""`rd_jax.fit` trains as the command does, from folders, files and arrays."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from PIL import Image

import rd_jax
from rd_jax.system.errors import UserError
from tests.command import evaluation, run, succeeded, training
from tests.trained import largest_difference

FIELDS: dict[str, Any] = {
    "backbone": "tiny", "teacher_weights": "random", "image_size": 32, "batch_size": 4,
    "num_epochs": 1, "holdout": 0.5, "holdout_at_least": 0, "dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def good(data_dir: Path) -> Path:
    """The good images of a category in MVTec AD layout."""
    return data_dir / "weave" / "train" / "good"


@pytest.fixture(scope="module")
def fitted(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `fit` leaves of that folder."""
    workdir = tmp_path_factory.mktemp("fitted")
    rd_jax.fit(good, workdir, **FIELDS)
    return workdir


def student_of(workdir: Path, category: str) -> Any:
    return rd_jax.restore(workdir, category)[1]


def test_a_category_is_trained_bit_for_bit_as_by_the_command(
    fitted: Path, data_dir: Path, tmp_path: Path
) -> None:
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    short = ("--config.loss=mixed", "--config.ema=0.999", "--config.keep_optimizer=True")
    workdir = tmp_path / "command"
    succeeded(*training(data_dir, workdir, "--config.category=weave", *short, *fields))
    ours, theirs = (student_of(folder, "weave") for folder in (fitted, workdir))
    assert largest_difference(ours, theirs) == 0
    for name in ("results.json", "thresholds.json", "evaluation.npz"):
        assert (fitted / "weave" / name).exists()
    assert (fitted / "report.html").exists()
    succeeded(*evaluation(fitted))  # finds the images again


def test_files_arrays_and_a_plain_folder_are_the_same_images(
    good: Path, fitted: Path, tmp_path: Path
) -> None:
    paths = sorted(good.iterdir())
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in paths:
        (plain / path.name).symlink_to(path)
    arrays = np.stack([np.asarray(Image.open(path)) for path in paths])
    expected = student_of(fitted, "weave")
    given: dict[str, Any] = {"files": paths, "arrays": arrays, "folder": plain}
    for name, images in given.items():
        predictor = rd_jax.fit(images, tmp_path / name, **FIELDS)
        category = "plain" if name == "folder" else "images"
        assert predictor.categories == (category,)
        assert largest_difference(student_of(tmp_path / name, category), expected) == 0
        assert rd_jax.score_image(predictor, arrays[0]).is_anomalous is not None


def test_an_own_loss_and_an_own_optimiser_are_used(good: Path, tmp_path: Path) -> None:
    def half(teacher_features: Any, student_features: Any) -> jax.Array:
        return rd_jax.per_position_cosine_loss(teacher_features, student_features) / 2

    students = {}
    for name, loss, factor in (
        ("whole", rd_jax.per_position_cosine_loss, 0.05),
        ("half", half, 0.1),
    ):
        rd_jax.fit(good, tmp_path / name, loss=loss, optimizer=optax.sgd(factor), **FIELDS)
        students[name] = student_of(tmp_path / name, "weave")
    assert largest_difference(students["whole"], students["half"]) < 1e-6
    rd_jax.load_predictor(tmp_path / "half", false_positive_rate=0.2)
    done = run(*training(good.parents[2], tmp_path / "half", "--config.loss=own:half"))
    assert done.returncode == 2
    assert "rd_jax.fit(loss=...)" in done.stderr


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((3, 8, 8, 3)), "images are float64 [3, 8, 8, 3]: must be uint8"),
        ([], "the list of image files is empty"),
        (["nowhere.png"], "nowhere.png is not a file"),
        ("nowhere", "is not a folder"),
    ],
)
def test_images_that_fit_refuses_are_one_line(images: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        rd_jax.fit(images, tmp_path / "work", **FIELDS)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
