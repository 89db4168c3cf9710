"""The TFDS builder of MVTec AD."""

import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import examples.mvtec_ad_tfds
from rd_jax.data.sources import Source, find_categories
from rd_jax.data.synthetic import write_category
from rd_jax.system.errors import UserError

TURNED = b'<rdf:Description tiff:Orientation="6"/>'


def test_the_builder_gives_what_the_folders_hold(tmp_path: Path) -> None:
    write_category(tmp_path, num_train=3, num_test=1, size=48)
    manual = tmp_path / "manual"
    manual.mkdir()
    (tmp_path / "weave").rename(manual / "bottle")
    grey = manual / "bottle" / "test" / "good" / "grey.png"
    Image.fromarray(np.full((40, 56), 77, np.uint8)).save(grey)
    [category] = find_categories(Source(str(manual), "", (1, 1), "stretch"), "bottle")

    config = tfds.download.DownloadConfig(manual_dir=manual)
    sources = tfds.data_source(
        "mvtec_ad/bottle",
        data_dir=tmp_path / "tfds",
        download_and_prepare_kwargs={"download_config": config},
    )
    assert "tensorflow" not in sys.modules
    assert (len(sources["train"]), len(sources["test"])) == (3, 6)
    examples = {example["name"].decode(): example for example in sources["test"]}
    for row in category.rows:
        if row.split == "test":
            example = examples.pop(f"{row.label}/{row.image.name}")
            pixels = np.asarray(Image.open(row.image).convert("RGB"))
            np.testing.assert_array_equal(example["image"], pixels)
            assert example["defect"].decode() == row.label
            assert example["label"] == (row.label != "good")
            masks = [np.asarray(Image.open(path)) for path in row.masks]
            mask = masks[0] if masks else np.zeros(pixels.shape[:2])
            np.testing.assert_array_equal(example["mask"][..., 0], mask)
    assert not examples


def category(tmp_path: Path) -> tuple[Path, tfds.core.DatasetBuilder]:
    write_category(tmp_path, num_train=1, num_test=1, size=48)
    (tmp_path / "weave").rename(tmp_path / "bottle")
    return tmp_path / "bottle", tfds.builder("mvtec_ad/bottle", data_dir=tmp_path / "tfds")


def test_unusual_files_are_in_the_set_as_they_are_read_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, builder = category(tmp_path)
    path, mask = folder / "test/stain/000.png", folder / "ground_truth/stain/000_mask.png"
    with Image.open(path) as image, Image.open(mask) as white:
        upright, labels = image.crop((0, 0, 48, 32)), np.asarray(white)[:32] // 255
    upright.rotate(90, expand=True).save(path, "WEBP", lossless=True, xmp=TURNED)
    Image.fromarray(labels).save(mask)
    translucent, dark = folder / "test/good/key.png", folder / "test/good/dark.png"
    upright.save(translucent, transparency=upright.getpixel((0, 0)))
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(dark)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path))
    decoders = {"image": tfds.decode.SkipDecoding()}
    source = builder.as_data_source("test", decoders=decoders)
    examples = {example["name"].decode(): example for example in source}
    for name in ("stain/000.png", "good/key.png"):
        with Image.open(io.BytesIO(examples[name]["image"])) as stored:
            assert (stored.mode, stored.info) == ("RGB", {})
            np.testing.assert_array_equal(stored, upright)
    np.testing.assert_array_equal(examples["stain/000.png"]["mask"][..., 0], 255 * labels)
    assert "1 of 7 images have 16 bits and no value above a quarter of white." in caplog.text
    assert str(dark) in caplog.text


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder, builder = category(tmp_path)
    mask = folder / "ground_truth/stain/000_mask.png"
    levels = np.full((48, 48), 200, np.uint8)
    levels[0] = 180
    Image.fromarray(levels).save(mask)
    config = tfds.download.DownloadConfig(manual_dir=tmp_path)
    with pytest.raises(UserError, match=f"{mask} .mask values are 180 to 200, so all"):
        builder.download_and_prepare(download_config=config)


def test_defects_without_masks_are_refused(tmp_path: Path) -> None:
    folder, builder = category(tmp_path)
    shutil.rmtree(folder / "ground_truth")
    config = tfds.download.DownloadConfig(manual_dir=tmp_path)
    with pytest.raises(UserError, match="has no ground_truth folder"):
        builder.download_and_prepare(download_config=config)


def test_odd_names_are_taken_and_unused_folders_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_category(tmp_path, num_train=1, num_test=1, size=48)
    root = (tmp_path / "weave").rename(tmp_path / "bottle")
    shutil.copytree(root / "test", root / "others")
    (root / "test/good/000.png").rename(root / "test/good/\udcff.png")
    builder = tfds.builder("mvtec_ad/bottle", data_dir=tmp_path / "tfds")
    config = tfds.download.DownloadConfig(manual_dir=tmp_path)
    builder.download_and_prepare(download_config=config)
    assert (
        "bottle: images are not used from others, only from train, validation, test" in caplog.text
    )
    names = [example["name"].decode() for example in builder.as_data_source("test")]
    assert "good/\\udcff.png" in names


def test_there_is_a_config_for_each_of_the_fifteen_categories() -> None:
    names = [config.name for config in examples.mvtec_ad_tfds.MvtecAd.BUILDER_CONFIGS]
    assert len(set(names)) == 15
