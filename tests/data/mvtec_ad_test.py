"""The TFDS builder of MVTec AD."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import rd_jax.data.mvtec_ad
from rd_jax.data.mvtec import read_category
from rd_jax.data.synthetic import write_category
from rd_jax.system.errors import UserError


def test_the_builder_gives_what_the_folders_hold(tmp_path: Path) -> None:
    write_category(tmp_path, num_train=3, num_test=1, size=48)
    manual = tmp_path / "manual"
    manual.mkdir()
    (tmp_path / "weave").rename(manual / "bottle")
    grey = manual / "bottle" / "test" / "good" / "grey.png"
    Image.fromarray(np.full((40, 56), 77, np.uint8)).save(grey)
    files = read_category(manual, "bottle")

    config = tfds.download.DownloadConfig(manual_dir=manual)
    sources = tfds.data_source(
        "mvtec_ad/bottle",
        data_dir=tmp_path / "tfds",
        download_and_prepare_kwargs={"download_config": config},
    )
    assert "tensorflow" not in sys.modules
    assert (len(sources["train"]), len(sources["test"])) == (3, 6)
    examples = {example["name"].decode(): example for example in sources["test"]}
    for image in files.test:
        example = examples.pop(f"{image.defect}/{image.path.name}")
        pixels = np.asarray(Image.open(image.path).convert("RGB"))
        np.testing.assert_array_equal(example["image"], pixels)
        assert example["defect"].decode() == image.defect
        assert example["label"] == (image.defect != "good")
        mask = np.asarray(Image.open(image.mask)) if image.mask else np.zeros(pixels.shape[:2])
        np.testing.assert_array_equal(example["mask"][..., 0], mask)
    assert not examples


def test_defects_without_masks_are_refused(tmp_path: Path) -> None:
    write_category(tmp_path, num_train=1, num_test=1, size=48)
    (tmp_path / "weave").rename(tmp_path / "bottle")
    shutil.rmtree(tmp_path / "bottle" / "ground_truth")
    config = tfds.download.DownloadConfig(manual_dir=tmp_path)
    builder = tfds.builder("mvtec_ad/bottle", data_dir=tmp_path / "tfds")
    with pytest.raises(UserError, match="has no ground_truth folder"):
        builder.download_and_prepare(download_config=config)


def test_odd_names_are_taken_and_unused_folders_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_category(tmp_path, num_train=1, num_test=1, size=48)
    root = (tmp_path / "weave").rename(tmp_path / "bottle")
    shutil.copytree(root / "test", root / "validation")
    (root / "test/good/000.png").rename(root / "test/good/\udcff.png")
    builder = tfds.builder("mvtec_ad/bottle", data_dir=tmp_path / "tfds")
    config = tfds.download.DownloadConfig(manual_dir=tmp_path)
    builder.download_and_prepare(download_config=config)
    assert "bottle: images are not used from validation, but from train, test" in caplog.text
    names = [example["name"].decode() for example in builder.as_data_source("test")]
    assert "good/\\udcff.png" in names


def test_there_is_a_config_for_each_of_the_fifteen_categories() -> None:
    names = [config.name for config in rd_jax.data.mvtec_ad.MvtecAd.BUILDER_CONFIGS]
    assert len(set(names)) == 15
