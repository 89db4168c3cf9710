"""Files to arrays: decoding, categories, and the cache between them."""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from rd_jax.data import cache, synthetic
from rd_jax.data.cache import load_images, load_masks
from rd_jax.data.decode import decode_image, placed, read_image, resized
from rd_jax.data.sources import Source, find_categories
from rd_jax.data.synthetic import DEFECTS, cached_data_dir, weave, write_category
from rd_jax.system.errors import UserError

GREY = (np.arange(64 * 64) % 256).reshape(64, 64).astype(np.uint8)
SIZE = (64, 64)


def decoded(path: Path, size: tuple[int, int] = SIZE, resize: str = "stretch") -> np.ndarray:
    return decode_image(path, size, resize)[0]


@pytest.fixture
def grey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    Image.fromarray(GREY).save(tmp_path / "data" / "a.png")
    return tmp_path / "data" / "a.png"


def cache_files(grey: Path) -> list[Path]:
    return sorted((grey.parents[1] / "cache" / "rd_jax" / "images").iterdir())


def test_decoding_equals_pil_bilinear(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decoded(tmp_path / "a.png", (32, 32)), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_decodes_to_the_same_grey(tmp_path: Path, mode: str) -> None:
    grey = np.where(GREY > 127, 255, 0).astype(np.uint8) if mode in ("1", "CMYK") else GREY
    image = Image.fromarray(grey.astype(np.uint16) * 257 if mode == "I;16" else grey)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    (image if mode == "I;16" else image.convert(mode)).save(path)
    pixels, sha256, _ = decode_image(path, SIZE)
    np.testing.assert_array_equal(pixels, np.repeat(grey[..., None], 3, 2))
    Image.fromarray(grey).convert("RGB").save(tmp_path / "rgb.png")
    assert sha256 == decode_image(tmp_path / "rgb.png", (8, 8))[1]


def test_every_level_of_16_bits_is_rounded(tmp_path: Path) -> None:
    levels = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(levels).save(tmp_path / "a.png")
    expected = np.floor(levels / 257 + 0.5)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png"))[..., 1], expected)


def test_grey_is_resized_as_its_colours_would_be(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 91), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    in_colour = resized(Image.fromarray(noise).convert("RGB"), (32, 64))
    np.testing.assert_array_equal(decoded(tmp_path / "a.png", (32, 64)), in_colour)


def test_transparent_palettes_decode_without_a_warning(tmp_path: Path) -> None:
    image = Image.fromarray(GREY).convert("P")
    image.save(tmp_path / "a.png", transparency=bytes([0, 128] * 128))
    np.testing.assert_array_equal(decoded(tmp_path / "a.png")[..., 0], GREY)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["png", "tif", "webp"])
def test_images_are_turned_as_pillow_turns_them(
    tmp_path: Path, orientation: int, form: str
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"a.{form}"
    Image.fromarray(GREY[:40]).save(path, exif=exif, lossless=True)
    with path.open("rb") as stream, Image.open(stream) as file:
        expected = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)


def test_masks_are_thresholded_at_half(tmp_path: Path) -> None:
    mask = np.zeros((4, 4), np.uint8)
    mask[0, :3] = [127, 128, 255]
    Image.fromarray(mask).save(tmp_path / "m.png")
    loaded, hashes = load_masks([[], [tmp_path / "m.png"]], [tmp_path / "m.png"] * 2, (4, 4))
    assert loaded.dtype == bool
    np.testing.assert_array_equal(loaded, [np.zeros((4, 4)), mask > 127])
    assert hashes[0] == 64 * "0" != hashes[1]


def test_the_cache_serves_unchanged_files_and_never_stale_ones(
    grey: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    own = cache.each_file
    monkeypatch.setattr(cache, "each_file", lambda f, paths: read.extend(paths) or own(f, paths))
    first, hashes = load_images([grey], SIZE)
    np.testing.assert_array_equal(load_images([grey], SIZE)[0], first)
    assert load_images([grey], SIZE)[1] == hashes
    assert read == [grey]
    times, content = (grey.stat().st_atime_ns, grey.stat().st_mtime_ns), grey.read_bytes()
    time.sleep(0.02)  # a tick of the file system
    Image.fromarray(255 - GREY).save(grey)
    with grey.open("ab") as file:  # the same size, and the same time
        file.truncate(len(content))
    os.utime(grey, ns=times)
    np.testing.assert_array_equal(load_images([grey], SIZE)[0][0, ..., 0], 255 - GREY)
    assert load_images([grey], SIZE)[1] != hashes
    assert read == [grey, grey]


def test_hashes_are_of_pixels_and_not_of_files_sizes_or_names(grey: Path) -> None:
    other = grey.with_name("b.bmp")
    Image.fromarray(GREY).convert("RGB").save(other)
    (both, same), (again, _) = (load_images([grey, other], size)[1] for size in (SIZE, (32, 32)))
    assert both == same == again
    Image.fromarray(GREY.reshape(32, 128)).save(other)  # the same bytes in another shape
    assert load_images([other], SIZE)[1] != (both,)


def test_a_file_that_changes_while_it_is_read_is_named_and_not_kept(
    grey: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = cache.each_file

    def replaced_first(*arguments: object) -> list:
        new = grey.with_name("new.png")
        Image.fromarray(255 - GREY).save(new)
        os.replace(new, grey)
        return own(*arguments)

    monkeypatch.setattr(cache, "each_file", replaced_first)
    with pytest.raises(UserError, match=rf"{grey} changed while it was read: start again"):
        load_images([grey], SIZE)
    assert not cache_files(grey)


@pytest.mark.parametrize("how", ["truncated", "empty", "no array"])
def test_a_damaged_cache_file_is_made_again(grey: Path, how: str) -> None:
    first = np.array(load_images([grey], SIZE)[0])
    [cached] = cache_files(grey)
    content = cached.read_bytes()
    cached.write_bytes({"truncated": content[:1000], "empty": b""}.get(how, b"?" + content))
    np.testing.assert_array_equal(load_images([grey], SIZE)[0], first)
    assert cache_files(grey) == [cached]


def raise_not_found(path: Path) -> None:
    raise FileNotFoundError(path)


def test_a_reader_of_the_cache_never_sees_a_half_written_file(
    grey: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_images([grey], SIZE)
    [cached] = cache_files(grey)
    before, content = cached.stat().st_ino, cached.read_bytes()
    with cached.open("rb"):  # held, so that its number is not used again
        with monkeypatch.context() as first:  # as at two first starts at once
            first.setattr(os, "utime", raise_not_found)
            load_images([grey], SIZE)
        assert cache_files(grey) == [cached]
        assert cached.stat().st_ino != before  # renamed to, not written into
        assert cached.read_bytes() == content


def test_stale_unfinished_files_and_those_beyond_the_room_are_removed(
    grey: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_images([grey], SIZE)
    [kept] = cache_files(grey)
    old, recent = kept.with_name("a.partial"), kept.with_name("b.partial")
    for path, age in ((old, 7200), (recent, 60)):
        path.write_bytes(b"?")
        os.utime(path, (time.time() - age, time.time() - age))
    load_images([grey], SIZE)
    assert cache_files(grey) == sorted([kept, recent])
    recent.unlink()
    monkeypatch.setattr(cache, "_MOST_BYTES", 2 * kept.stat().st_size)
    os.utime(kept, (10**9, 10**9))  # not used for long
    sizes = [(63, 63), (62, 62), (61, 61)]
    for size in sizes:
        load_images([grey], size)
    assert kept not in cache_files(grey)
    assert len(cache_files(grey)) <= 3  # two, and the one that was written last


@pytest.fixture
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    few = partial(write_category, num_train=2, num_test=1, size=48)
    monkeypatch.setattr(synthetic, "write_category", few)


@pytest.mark.usefixtures("_few_images")
def test_the_generated_category_is_whole_whoever_makes_it_first(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(cached_data_dir, [tmp_path / "cache"] * 2)
    assert one == other
    synthetic.write_category(tmp_path / "alone")
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
    np.testing.assert_array_equal(load_images([tmp_path / "a.png"], SIZE)[0][0, ..., 0], GREY)
    assert "no cache is kept" in caplog.text


def test_all_files_that_cannot_be_read_are_named(grey: Path) -> None:
    whole = grey.read_bytes()
    grey.with_name("truncated.png").write_bytes(whole[: len(whole) // 2])
    grey.with_name("text.png").write_text("not an image")
    paths = sorted(grey.parent.glob("*.png"))
    with pytest.raises(UserError, match=r"2 of 3 files .*text\.png \(not an.*truncated\.png \("):
        load_images(paths, SIZE)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    write_category(tmp_path, num_train=3, num_test=2, size=64)
    return tmp_path


def source(data_dir: Path, size: int = 64) -> Source:
    return Source(str(data_dir), "", (size, size), "stretch")


def test_a_category_is_listed_once_and_read_with_labels_and_masks(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = []
    own = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listings.append(path) or own(path))
    [category] = find_categories(source(data_dir))
    # data_dir, the category twice, and train, test with what is in them
    in_data = [path for path in listings if isinstance(path, Path)]
    assert len(in_data) == 3 + 2 + 1 + 5
    listings.clear()
    split = category.load()
    assert not [path for path in listings if path.is_relative_to(data_dir)]
    assert (category.name, category.num_train) == ("weave", 3)
    root = data_dir.resolve() / "weave"
    assert {data_dir.resolve(), root, root / "train/good", root / "ground_truth/stain"} < {
        *category.folders
    }
    assert split.train.shape == (3, 64, 64, 3)
    assert split.test.shape == (10, 64, 64, 3)
    assert len(split.train_hashes) == 3
    assert split.masks is not None
    assert split.labels.sum() == 8
    np.testing.assert_array_equal(split.masks.any((1, 2)), split.labels)


def test_the_hash_of_test_images_changes_with_images_masks_and_names(data_dir: Path) -> None:
    def test_sha256(size: int = 64) -> str:
        [category] = find_categories(source(data_dir, size), "weave")
        return category.load().test_sha256

    root = data_dir / "weave"
    seen = [test_sha256()]
    assert test_sha256(32) == seen[0]
    (root / "test/good/001.png").rename(root / "test/good/002.png")
    seen.append(test_sha256())
    Image.fromarray(GREY).save(root / "test/good/002.png")
    seen.append(test_sha256())
    Image.fromarray(np.uint8(255) * (GREY > 9)).save(root / "ground_truth/stain/000_mask.png")
    seen.append(test_sha256())
    shutil.rmtree(root / "ground_truth")
    seen.append(test_sha256())
    assert len(set(seen)) == 5


def test_categories_are_chosen_by_name_and_several_between_commas(data_dir: Path) -> None:
    for name in ("a", "b", "a,b"):
        shutil.copytree(data_dir / "weave", data_dir / name)

    def found(chosen: str) -> list[str]:
        return [category.name for category in find_categories(source(data_dir), chosen)]

    assert found("") == ["a", "a,b", "b", "weave"]
    assert found("b") == ["b"]
    assert found("a,b") == ["a,b"]
    assert found(" weave, a,,weave") == ["weave", "a"]


@pytest.mark.usefixtures("_few_images", "grey")
def test_the_generated_category_is_a_source() -> None:
    [category] = find_categories(Source("synthetic", "", (32, 32), "stretch"))
    assert (category.name, category.num_train) == ("weave", 2)


def test_the_real_category_is_read_whole(bottle_dir: Path) -> None:
    [category] = find_categories(source(bottle_dir), "bottle")
    test = [row for row in category.rows if row.split == "test"]
    assert (category.num_train, len(test)) == (209, 83)
    masks, _ = load_masks([row.masks for row in test], [row.image for row in test], (256, 256))
    np.testing.assert_array_equal(masks.any((1, 2)), [row.label != "good" for row in test])
    assert masks.any((1, 2)).sum() == 63


def test_masks_and_test_images_are_optional(data_dir: Path) -> None:
    shutil.rmtree(data_dir / "weave" / "ground_truth")
    [category] = find_categories(source(data_dir, 32))
    assert category.load().masks is None
    assert len(category.load().test) == 10
    shutil.rmtree(data_dir / "weave" / "test")
    [category] = find_categories(source(data_dir, 32))
    assert category.load().test.shape == (0, 32, 32, 3)


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


def test_a_fitted_image_and_its_mask_keep_their_ratio_and_are_mirrored_into_what_is_free(
    tmp_path: Path,
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    mask = np.zeros((30, 60), np.uint8)
    mask[2:20, 30:50] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    whole, region = placed(Image.fromarray(pixels), (96, 64), "fit")
    assert region == (32, 0, 32, 64)
    inner = np.asarray(Image.fromarray(pixels).resize((64, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(whole, np.concatenate([inner[::-1], inner, inner[::-1]]))
    ((loaded,), _) = load_images([tmp_path / "a.png"], (96, 64), "fit")
    np.testing.assert_array_equal(loaded, whole)
    ((found,), _) = load_masks([[tmp_path / "m.png"]], [tmp_path / "a.png"], (96, 64), "fit")
    inner = np.asarray(Image.fromarray(mask).resize((64, 32), Image.Resampling.BILINEAR)) > 127
    np.testing.assert_array_equal(found, np.concatenate([inner[::-1], inner, inner[::-1]]))


@pytest.mark.parametrize("shape", [(2, 1400), (1400, 2), (1, 1)])
def test_a_picture_of_any_shape_fits(tmp_path: Path, shape: tuple[int, int]) -> None:
    Image.fromarray(np.full(shape, 77, np.uint8)).save(tmp_path / "a.png")
    assert (decoded(tmp_path / "a.png", (32, 64), "fit") == 77).all()
