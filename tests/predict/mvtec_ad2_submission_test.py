"""`examples/mvtec_ad2_submission.py` writes what the server of MVTec AD 2 takes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from examples.mvtec_ad2_submission import SPLITS, main, tiff_of
from rd_jax import score_image
from rd_jax.predict.predictor import Predictor
from tests.command import assert_one_line, captured
from tests.reference_weights import draw_images


def read_tiff(path: Path) -> np.ndarray:
    """The 16-bit floats of a file, whose fields Pillow reads; it has no mode for them."""
    content = path.read_bytes()
    fields = ImageFileDirectory_v2(content[:8])
    with path.open("rb") as file:
        file.seek(fields.next)
        fields.load(file)
    assert (fields[258], fields[339], fields[277], fields[259]) == ((16,), (3,), 1, 1)
    assert fields[278] == fields[257]  # one strip
    (begin,), (length,) = fields[273], fields[279]
    assert begin + length <= len(content)
    return np.frombuffer(content[begin : begin + length], "<f2").reshape(fields[257], fields[256])


@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (300, 70)])
def test_maps_are_tiff_files_of_16_bit_floats(shape: tuple[int, int], tmp_path: Path) -> None:
    values = np.random.default_rng(0).gamma(2, 0.5, shape).astype(np.float32)
    (tmp_path / "a.tiff").write_bytes(tiff_of(values))
    np.testing.assert_array_equal(read_tiff(tmp_path / "a.tiff"), values.astype(np.float16))


def test_each_private_image_has_a_map_and_a_mask_of_its_size(
    training: Path, predictor: Predictor, tmp_path: Path
) -> None:
    data_dir, output = tmp_path / "data", tmp_path / "output"
    pictures = {}
    for split, image in zip((*SPLITS, "test_public/bad"), draw_images(3, 80), strict=True):
        folder = data_dir / training.name / split
        folder.mkdir(parents=True)
        pictures[split] = Image.fromarray(image[:48])
        pictures[split].save(folder / "000_regular.png")
    flags = ("--workdir", training.parent, "--data_dir", data_dir, "--output", output)
    done = captured(main, [*map(str, flags)])
    assert done.returncode == 0, done.stderr
    expected = {
        output / kind / training.name / split / f"000_regular.{suffix}"
        for kind, suffix in (("anomaly_images", "tiff"), ("anomaly_images_thresholded", "png"))
        for split in SPLITS
    }
    assert {path for path in output.rglob("*") if path.is_file()} == expected
    for path in expected:
        result = score_image(predictor, pictures[path.parent.name])
        if path.suffix == ".tiff":
            np.testing.assert_allclose(
                read_tiff(path), result.full_size_map(), rtol=1e-3, atol=1e-4
            )
        else:
            values, limit = result.full_size_map(), predictor.thresholds.pixel_threshold
            is_clear, mask = np.abs(values - limit) > 1e-4, np.asarray(Image.open(path))
            above = 255 * ((values > limit) & result.is_anomalous)
            np.testing.assert_array_equal(mask[is_clear], above[is_clear])
            assert mask.dtype == np.uint8


def test_missing_inputs_are_named(training: Path, tmp_path: Path) -> None:
    flags = ["--workdir", str(training.parent), "--output", str(tmp_path / "output")]
    done = captured(main, [*flags, "--data_dir", str(tmp_path)])
    assert_one_line(done, "holds no OBJECT/test_private: give the folder of MVTec AD 2")
    (tmp_path / training.name / SPLITS[0]).mkdir(parents=True)
    done = captured(main, [*flags, "--data_dir", str(tmp_path)])
    assert_one_line(done, SPLITS[0])
    shutil.rmtree(tmp_path / training.name)
