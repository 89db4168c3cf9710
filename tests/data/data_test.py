import functools
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rd_jax.data import cache, images
from rd_jax.data.decode import decode_image
from rd_jax.data.images import load_images, load_masks
from rd_jax.data.mvtec import find_categories, load_category, read_category
from rd_jax.data.synthetic import DEFECTS, cached_data_dir, weave, write_category
from rd_jax.system.errors import UserError


def test_decoding_equals_pil_bilinear(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", 32)[0], expected)


GREY = (np.arange(64 * 64) % 256).reshape(64, 64).astype(np.uint8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_decodes_to_the_same_grey(tmp_path: Path, mode: str) -> None:
    grey = np.where(GREY > 127, 255, 0).astype(np.uint8) if mode in ("1", "CMYK") else GREY
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    np.testing.assert_array_equal(decode_image(path, 64)[0], np.repeat(grey[..., None], 3, 2))


def test_transparent_palettes_decode_without_a_warning(tmp_path: Path) -> None:
    image = Image.fromarray(GREY).convert("P")
    image.save(tmp_path / "a.png", transparency=bytes([0, 128] * 128))
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", 64)[0][..., 0], GREY)


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(
        decode_image(tmp_path / "a.png", 64)[0][..., 0], np.rot90(GREY, -1)
    )


def test_masks_are_thresholded_at_half(tmp_path: Path) -> None:
    mask = np.zeros((4, 4), np.uint8)
    mask[0, :3] = [127, 128, 255]
    Image.fromarray(mask).save(tmp_path / "m.png")
    loaded = load_masks([None, tmp_path / "m.png"], [tmp_path / "m.png"] * 2, 4)
    assert loaded.dtype == bool
    np.testing.assert_array_equal(loaded[0], False)
    np.testing.assert_array_equal(loaded[1], mask > 127)


def test_the_cache_serves_unchanged_files_and_never_stale_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "a.bmp"
    Image.fromarray(GREY).save(path)
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    first = load_images([path], 64)[0]
    decoded = []

    @functools.wraps(decode_image)
    def counting(path: Path, *arguments: object, **more: object) -> tuple:
        decoded.append(path)
        return decode_image(path, *arguments, **more)

    monkeypatch.setattr(images, "decode_image", counting)
    np.testing.assert_array_equal(load_images([path], 64)[0], first)
    assert not decoded
    Image.fromarray(255 - GREY).save(path)  # the same size, and the same time
    os.utime(path, ns=times)
    np.testing.assert_array_equal(load_images([path], 64)[0][0, ..., 0], 255 - GREY)
    assert decoded == [path]


@pytest.mark.parametrize("how", ["truncated", "altered"])
def test_a_damaged_cache_file_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Image.fromarray(GREY).save(tmp_path / "a.png")
    first = np.array(load_images([tmp_path / "a.png"], 64)[0])
    (cached,) = (tmp_path / "cache").rglob("*.npy")
    content = bytearray(cached.read_bytes())
    content[5000] ^= 1
    cached.write_bytes(content[:1000] if how == "truncated" else content)
    np.testing.assert_array_equal(load_images([tmp_path / "a.png"], 64)[0], first)
    assert f"damaged cache file {cached}" in caplog.text
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_who_reads_the_cache_never_sees_half_of_what_another_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Image.fromarray(GREY).save(tmp_path / "a.png")

    def written() -> dict[str, tuple[int, bytes]]:
        load_images([tmp_path / "a.png"], 64)[0]
        files = (tmp_path / "cache" / "rd_jax" / "images").iterdir()
        return {path.name: (path.stat().st_ino, path.read_bytes()) for path in files}

    first = written()
    # Held open, so that their numbers are not used again.
    held = [path.open("rb") for path in (tmp_path / "cache").rglob("*.*")]
    monkeypatch.setattr(cache, "_read_cached", lambda *_: None)  # as at two first starts at once
    second = written()
    for file in held:
        file.close()
    assert len(held) == len(first) == 2
    for name, (number, content) in first.items():
        assert second[name][0] != number  # renamed to, not written into
        assert second[name][1] == content


def test_the_generated_category_is_whole_whoever_makes_it_first(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(cached_data_dir, [tmp_path / "cache"] * 2)
    assert one == other
    write_category(tmp_path / "alone")
    for path in (tmp_path / "alone").rglob("*.png"):
        made = one / path.relative_to(tmp_path / "alone")
        assert made.read_bytes() == path.read_bytes()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [one.name]


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    Image.fromarray(GREY).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_images([tmp_path / "a.png"], 64)[0][0, ..., 0], GREY)
    assert "no cache is kept" in caplog.text


def test_all_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not an image")
    paths = sorted(tmp_path.glob("*.png"))
    with pytest.raises(UserError, match=r"2 of 3 files .*text\.png \(not an.*truncated\.png \("):
        load_images(paths, 64)[0]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    write_category(tmp_path, num_train=3, num_test=2, size=64)
    return tmp_path


def test_a_category_is_read_with_labels_and_masks(data_dir: Path) -> None:
    assert find_categories(data_dir) == ["weave"]
    split = load_category(data_dir, "weave", 64)
    assert split.train.shape == (3, 64, 64, 3)
    assert split.test.shape == (10, 64, 64, 3)
    assert split.masks is not None
    assert split.labels.sum() == 8
    np.testing.assert_array_equal(split.masks.any((1, 2)), split.labels)


def test_the_real_category_is_read_whole(bottle_dir: Path) -> None:
    files = read_category(bottle_dir, "bottle")
    assert (len(files.train), len(files.test)) == (209, 83)
    masks = load_masks([i.mask for i in files.test], [i.path for i in files.test], 256)
    np.testing.assert_array_equal(masks.any((1, 2)), [i.defect != "good" for i in files.test])
    assert masks.any((1, 2)).sum() == 63


def test_masks_and_test_images_are_optional(data_dir: Path) -> None:
    shutil.rmtree(data_dir / "weave" / "ground_truth")
    split = load_category(data_dir, "weave", 32)
    assert split.masks is None
    assert len(split.test) == 10
    shutil.rmtree(data_dir / "weave" / "test")
    assert load_category(data_dir, "weave", 32).test.shape == (0, 32, 32, 3)


def test_defects_change_the_image_only_where_the_mask_says() -> None:
    for i, defect in enumerate(DEFECTS):
        image, mask = weave(np.random.default_rng(i), 128, defect)
        assert 0.0005 < mask.mean() < 0.06
        assert image.dtype == np.uint8
        plain, _ = weave(np.random.default_rng(i), 128)
        changed = (image != plain).any(-1)
        assert changed.any()
        assert not changed[~mask].any()
        again, _ = weave(np.random.default_rng(i), 128, defect)
        np.testing.assert_array_equal(image, again)


def test_a_fitted_image_keeps_its_ratio_and_is_filled_with_its_mirror_image(
    tmp_path: Path,
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    mask = np.zeros((30, 60), np.uint8)
    mask[10:20, 30:50] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    decoded, region = decode_image(tmp_path / "a.png", (96, 64), resize="fit")
    assert region == (32, 0, 32, 64)
    inner = np.asarray(Image.fromarray(pixels).resize((64, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decoded[32:64], inner)
    np.testing.assert_array_equal(decoded[:32], inner[::-1])
    np.testing.assert_array_equal(decoded[64:], inner[::-1])
    ((loaded,), (place,)) = load_images([tmp_path / "a.png"], (96, 64), resize="fit")
    np.testing.assert_array_equal(loaded, decoded)
    assert tuple(place) == region
    paths = [tmp_path / "m.png"], [tmp_path / "a.png"]
    (found,) = load_masks(*paths, (96, 64), resize="fit")
    stretched = Image.fromarray(mask).resize((64, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found[32:64], np.asarray(stretched) > 127)
    assert not found[:32].any()
    assert not found[64:].any()
