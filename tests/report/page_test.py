import base64
import hashlib
import io
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from rd_jax.data.synthetic import DEFECTS
from rd_jax.report import page
from rd_jax.report.figures import write_figures
from rd_jax.report.heatmap import overlay
from rd_jax.store import checkpoint
from rd_jax.store.results import VERDICTS, read_results
from rd_jax.store.thresholds import write_thresholds
from rd_jax.store.workdir import JOINT, Workdir
from tests.report.evaluated import (
    CHECKSUM,
    STORED,
    THRESHOLDS,
    add_evaluation,
    add_results,
    keep_thresholds,
    row,
    weave_split,
    write,
)

SCRIPT = "</script><script>document.title = 'broken'</script>"
CATEGORY = '<script>alert(1)<!--_"_and_a_name_that_is_longer_than_a_phone_is_wide'
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update"
)


def add_drawn(workdir: Path, category: str, drawn_run: Path, suffix: str = "") -> None:
    """Leave what an evaluation does, with the figures of another one."""
    place, kept = add_evaluation(workdir, category, suffix), Workdir(workdir).figures
    kept.mkdir(exist_ok=True)
    for path in Workdir(drawn_run).figures.iterdir():
        shutil.copy(path, kept / path.name.replace("a.b", place.label))


def write_page(workdir: Path) -> None:
    page.write_page(workdir, read_results(workdir))


def text_of(workdir: Path) -> str:
    write_page(workdir)
    no_text = re.compile(r"<(svg|style|script).*?</\1>|<[^>]+>", re.DOTALL)
    return " ".join(unescape(no_text.sub(" ", page_of(workdir))).split())


def page_of(workdir: Path) -> str:
    return (workdir / "report.html").read_text(encoding="utf-8")


def rows_of(workdir: Path) -> list[list[str]]:
    """The cells of all tables, row by row."""
    write_page(workdir)
    lines = re.findall(r"<tr.*?</tr>", page_of(workdir), re.DOTALL)
    cells = (re.findall(r"<t[hd].*?</t[hd]>", line) for line in lines)
    return [[re.sub("<.*?>", "", cell) for cell in line] for line in cells]


def test_a_page_needs_nothing_but_itself(tmp_path: Path, drawn_run: Path) -> None:
    add_drawn(tmp_path, "weave", drawn_run)
    write_page(tmp_path)
    references = re.findall(r'(?:\bsrc|href|action|data|poster)="([^"]*)"', page_of(tmp_path))
    assert len(references) > 30
    assert all(reference.startswith(("data:", "#")) for reference in references)
    assert set(re.findall(r"url\((.)", page_of(tmp_path))) == {"#"}
    assert "@import" not in page_of(tmp_path)
    ids = re.findall(r'\bid="([^"]+)"', page_of(tmp_path))
    assert len(ids) == len(set(ids))


def test_no_script_but_the_page_s_own_may_run(tmp_path: Path) -> None:
    add_evaluation(tmp_path, "weave")
    write_page(tmp_path)
    (script,) = re.findall(r"<script>(.*?)</script>", page_of(tmp_path), re.DOTALL)
    (allowed,) = re.findall(r"script-src 'sha256-(.*?)'", page_of(tmp_path))
    assert allowed == base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert page_of(tmp_path).count("script-src") == 1


def test_names_of_categories_are_text_and_nothing_else(tmp_path: Path, drawn_run: Path) -> None:
    names = (CATEGORY, 'a"><i>x', "metal nut", "a.b&amp;", "{{ title }}")
    for name in names:
        add_drawn(tmp_path, name, drawn_run)
    write_page(tmp_path)
    page = ElementTree.fromstring(body_of(page_of(tmp_path)))
    headings = [heading.text for heading in page.iter("h2")]
    assert headings[:5] == sorted(names)
    assert not list(page.iter("i"))
    references = re.findall(r"url\(#([^)]*)\)", page_of(tmp_path))
    assert references
    assert set(references) <= {element.get("id") for element in page.iter()}


def body_of(page: str) -> str:
    """The page's main element as XML: HTML's elements without an end get one."""
    main = page[page.index("<main>") : page.index("</main>") + len("</main>")]
    closed = re.sub(r"<(img|br)\b([^>]*)>", r"<\1\2/>", main)
    return closed.replace("xlink:", "")


def test_seeds_and_categories_have_rows_and_sections_of_their_own(tmp_path: Path) -> None:
    for seed, value in enumerate([0.5, 0.7]):
        add_results(tmp_path, "a", value, seed_folder=seed, aupro=None)
        add_results(tmp_path, "b", seed_folder=seed, aupro=None)
    assert "mean ± standard deviation over the seeds" in text_of(tmp_path)
    cells = rows_of(tmp_path)
    assert cells[0][:3] == ["category", "image AUROC", "pixel AUROC"]
    assert "AUPRO" not in cells[0]
    assert [line[:2] for line in cells[1:8]] == [
        ["a-seed_0", "50.00"], ["a-seed_1", "70.00"], ["a, 2 seeds", "60.00 ± 14.14"],
        ["b-seed_0", "90.00"], ["b-seed_1", "90.00"], ["b, 2 seeds", "90.00 ± 0.00"],
        ["mean", "75.00 ± 7.07"],
    ]  # fmt: skip
    targets = re.findall(r'<a href="#([^"]+)">', page_of(tmp_path))
    headings = re.findall(r'<h2 id="([^"]+)">([^<]+)</h2>', page_of(tmp_path))
    assert [anchor for anchor, _ in headings] == targets
    assert [name for _, name in headings] == ["a-seed_0", "a-seed_1", "b-seed_0", "b-seed_1"]


def test_the_page_lists_configs_and_their_differences(tmp_path: Path) -> None:
    config = {"log_every_steps": 3, "blur_sigma": 2.0}
    for name, seed in (("a", 0), ("b", 1)):
        add_results(tmp_path, name, seed=seed)
        metadata = {"config": config | {"seed": seed}}
        leaf = {"x": np.zeros(1)}
        with checkpoint.writer(Workdir(tmp_path).training(name).checkpoints) as save:
            save(1, leaf, leaf, metadata)
    text = text_of(tmp_path)
    assert "of the last step (not the best on the test set)" in text
    assert "log_every_steps 3 blur_sigma 4.0 seed 0, 1 " in text
    assert re.search(r"jax [\d.]+ ", text)


def test_decisions_at_the_threshold_are_counted(tmp_path: Path) -> None:
    verdicts = dict(zip(VERDICTS, (4, 8, 1, 2), strict=True))
    judged = {"checkpoint": CHECKSUM, "image_threshold": 1.5, **verdicts}
    place = add_results(tmp_path, "weave", **judged)
    split, maps = weave_split(10)
    scores = np.linspace(1.02, 1.92, 10, dtype=np.float32)  # images 0 and 5 are normal
    write(place.shown, split, maps, scores, THRESHOLDS)
    keep_thresholds(place)
    text = text_of(tmp_path)
    title = f"Reverse Distillation: {tmp_path.name}"
    assert f"{title} threshold 1.5, missed 4 of 8, false alarms 1 of 2 category image" in text
    shown = re.findall(r"(\w+/\d+\.png) \w+ [\d.]+ (missed|false alarm)", text)
    assert shown == [
        ("scratch/001.png", "missed"), ("stain/002.png", "missed"),
        ("missing_thread/003.png", "missed"), ("distortion/004.png", "missed"),
        ("good/005.png", "false alarm"),
    ]  # fmt: skip


def test_thresholds_of_another_checkpoint_are_none(tmp_path: Path) -> None:
    place = add_results(tmp_path, "weave", checkpoint=CHECKSUM + 1)
    split, maps = weave_split(10)
    write(place.shown, split, maps, maps.max((1, 2)), None)
    keep_thresholds(place)
    assert "There is no threshold from held-out good images" in text_of(tmp_path)


def test_a_page_opens_on_what_was_found_of_each_kind(tmp_path: Path) -> None:
    place = add_results(tmp_path, "weave", checkpoint=CHECKSUM)
    split, maps = weave_split(10)
    write(place.shown, split, maps, 1.0 + split.labels, THRESHOLDS)
    keep_thresholds(place)
    write_page(tmp_path)
    before, _, errors = body_of(page_of(tmp_path)).partition("<details>")
    kinds = re.findall(r"<figcaption><b>(\w+)</b>", before)
    assert kinds[0] == "good"
    assert kinds[1] == "good"
    assert set(kinds[2:6]) == set(DEFECTS)
    captions = re.findall(r"<figcaption><b>\w+</b> ([\d.]+)", before)
    assert captions == ["1"] * 2 + ["2"] * 8
    headings = re.findall(r"<span>(\w+)</span><img", before)
    assert headings[:6] == ["image", "heatmap", "truth"] * 2
    assert before.index("<figcaption>") < before.index("Colour begins")
    assert '<div class="figures">' not in before
    assert errors.count("<figcaption>") == 10


def test_a_folder_without_an_evaluation_says_how_to_get_one(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("num_steps", "last_step", "train_seconds", "images_per_second"))
    nothing |= {"rd4ad_checkpoint": "x.pth", "seed": None}
    add_results(tmp_path, "a", **nothing)
    text = text_of(tmp_path)
    assert "run once with --mode eval" in text
    assert "authors' checkpoint x.pth" in text
    assert not (tmp_path / "figures").exists()


def test_an_evaluation_that_was_cut_short_is_told_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        place = add_evaluation(tmp_path, name)
    place.shown.write_bytes(place.shown.read_bytes()[:-100])
    assert text_of(tmp_path).count("and no gallery: run once with --mode eval") == 1
    assert f"{place.shown} is left out, since it cannot be read" in caplog.text


def test_the_config_of_a_joint_training_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        add_results(tmp_path, name, joint=True)
    trained = {tmp_path / JOINT / "checkpoints": {"config": {"log_every_steps": 3}}}
    monkeypatch.setattr(checkpoint, "latest_metadata", trained.get)
    assert "log_every_steps 3" in text_of(tmp_path)


def test_figures_that_are_not_there_are_told(tmp_path: Path, drawn_run: Path) -> None:
    how = "No curves: their files are missing. Remove its results.json and run once"
    add_evaluation(tmp_path, "weave")
    assert text_of(tmp_path).count(how) == 1
    add_drawn(tmp_path, "weave", drawn_run)
    assert how not in text_of(tmp_path)


def test_without_test_images_the_page_shows_what_the_threshold_rests_on(tmp_path: Path) -> None:
    judged = {"checkpoint": CHECKSUM, "image_threshold": 1.5}
    place = add_results(tmp_path, "my weave", None, **judged)
    split, maps = weave_split(0)
    write(place.shown, split, maps, np.zeros(0), THRESHOLDS)
    keep_thresholds(place)
    write_figures(place, row("my weave", None, **judged))
    text = text_of(tmp_path)
    assert "threshold 1.5, no test images Backbone" in text  # and no table in between
    assert "7.69% of new good images are above it" in text
    folder = shlex.quote(str(place.folder))
    assert f"rd_jax.predict --workdir {folder} new_images/ --output predictions" in text
    assert re.findall(r"(\d+\.png) [\d.]+ ", text) == [*split.train_names][::-1]
    assert "Image scores: held out (12), threshold at 1.5" in page_of(tmp_path)


def test_heatmaps_are_those_of_the_thresholds_of_now(tmp_path: Path) -> None:
    place = add_evaluation(tmp_path, "weave")
    split, maps = weave_split(10)
    for ends, limit in (((0.1, 2.1), 9.0), ((0.6, 0.8), 0.1)):
        low, high = ends
        now = THRESHOLDS._replace(map_low=low, map_high=high, image_threshold=limit)
        write_thresholds(place.thresholds, STORED._replace(thresholds=now))
        write_page(tmp_path)
        pictures = r'alt="([^"]+)"><span>heatmap</span><img src="data:[^,]+,([^"]+)'
        found = dict(re.findall(pictures, page_of(tmp_path)))
        for i, name in enumerate(split.test_names):
            with Image.open(io.BytesIO(base64.b64decode(found[name]))) as heatmap:
                expected = overlay(split.test[i], maps[i], *ends, maps[i].max() > limit)
                assert np.abs(np.asarray(heatmap, int) - expected).mean() < 12  # of two JPEG


def test_few_held_out_images_are_warned_of(tmp_path: Path) -> None:
    few = THRESHOLDS._replace(possible_rate=0.22)
    for name, thresholds in (("a", THRESHOLDS), ("b", few)):
        place = add_evaluation(tmp_path, name)
        write_thresholds(place.thresholds, STORED._replace(thresholds=thresholds))
    assert text_of(tmp_path).count("12 held-out images are few: on average 1 in 13 good") == 1


def test_one_category_has_no_mean_and_figures_that_say_nothing_no_column(tmp_path: Path) -> None:
    add_results(tmp_path, "a", 0.9, pixel_ap=None, image_precision=0.5, image_recall=None)
    header, line, *others = rows_of(tmp_path)
    assert header == [
        *("category", "image AUROC", "pixel AUROC", "AUPRO", "image AP", "image F1 max"),
        *("pixel F1 max", "precision"),
    ]
    assert line == ["a", "90.00", "90.00", "90.00", "90.00", "90.00", "90.00", "50.00"]
    assert not [cells for cells in others if "mean" in cells]


def test_classes_are_called_classes(tmp_path: Path) -> None:
    place = add_results(tmp_path, "3", dataset="digits")
    split, maps = weave_split(10)
    names = tuple("3/1" if not label else "8/2" for label in split.labels)
    write(place.shown, replace(split, test_names=names), maps, maps.max((1, 2)), None)
    text = text_of(tmp_path)
    header = ["normal class", "image AUROC", "image AUROC (sum)", "image AUROC (maximum)"]
    assert rows_of(tmp_path)[0] == header
    assert "class 3 Examples with their scores: the median image of the normal class" in text
    assert "highest scores of each other class" in text
    assert re.search(r"<b>class 8</b> [\d.]+", page_of(tmp_path))
    assert "defect" not in text
    assert "rd_jax.predict" not in text


def test_settings_and_versions_are_folded(tmp_path: Path) -> None:
    add_results(tmp_path, "a")
    write_page(tmp_path)
    page = ElementTree.fromstring(body_of(page_of(tmp_path)))
    folded = {details[0].text: details for details in page.iter("details")}
    assert "image_size" in "".join(folded["Config"].itertext())
    assert "jaxlib" in "".join(folded["Versions"].itertext())


@pytest.mark.parametrize(("count", "says"), [(0, "no test images"), (1, "orders by score")])
def test_without_both_classes_there_is_a_page(tmp_path: Path, count: int, says: str) -> None:
    place = add_results(tmp_path, "weave", None)
    split, maps = weave_split(count)
    write(place.shown, split, maps, maps.max((1, 2), initial=0), None)
    assert says in text_of(tmp_path)


def test_a_page_shows_only_some_of_too_many_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "_MAX_IMAGES", 8)
    for name in ("a", "b"):
        add_evaluation(tmp_path, name)
    text = text_of(tmp_path)
    assert text.count("Test images, worst errors first: 4 of 10") == 2
    assert text.count("shows the worst, and others evenly spaced from there to the clearest.") == 2


def test_names_that_are_no_text_do_not_break_the_page(tmp_path: Path) -> None:
    place = add_results(tmp_path, "weave")
    split, maps = weave_split(10)
    split = replace(split, test_names=tuple(f"good/\udcff{i}.png" for i in range(10)))
    write(place.shown, split, maps, maps.max((1, 2)), None)
    assert "good/?3.png" in text_of(tmp_path)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_of_texts_stand_out(theme: int) -> None:
    source = (Path(page.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    colours = dict(
        re.findall(r"--(\w+): (#\w+);", re.findall(r":root \{(.*?)\}", source, re.S)[theme])
    )

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        x = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
        linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for text in ("ink", "muted", "normal", "anomalous"):
        for background in ("paper", "card"):
            pair = sorted([luminance(colours[text]), luminance(colours[background])])
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5  # WCAG 2, level AA


@pytest.fixture(scope="module")
def browser(
    tmp_path_factory: pytest.TempPathFactory, drawn_run: Path
) -> Iterator[webdriver.Chrome]:
    """Chromium, with a page of a category and images whose names are scripts."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver (Debian: chromium, chromium-driver)")
    workdir = tmp_path_factory.mktemp("shown")
    add_drawn(workdir, CATEGORY, drawn_run, SCRIPT)
    write_page(workdir)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, Service(driver)) as browser:
        browser.get((workdir / "report.html").as_uri())
        browser.find_element(By.TAG_NAME, "summary").click()
        yield browser


def test_the_page_opens_without_an_error_and_shows_names_as_they_are(
    browser: webdriver.Chrome,
) -> None:
    assert browser.get_log("browser") == []
    assert browser.title == "Reverse Distillation: shown0"
    assert browser.find_element(By.CSS_SELECTOR, "h2").text == CATEGORY
    captions = browser.find_elements(By.CSS_SELECTOR, "details figcaption")
    assert len(captions) == 10
    assert all(SCRIPT in caption.text for caption in captions)
    loaded = "return [...document.images].every(image => image.complete && image.naturalWidth)"
    assert browser.execute_script(loaded)


def test_buttons_sort_the_gallery(browser: webdriver.Chrome) -> None:
    def shown(attribute: str) -> list[str]:
        figures = browser.find_elements(By.CSS_SELECTOR, "details figure")
        return [figure.get_attribute(f"data-{attribute}") for figure in figures]

    def press(key: str) -> None:
        browser.find_element(By.CSS_SELECTOR, f"button[data-key={key}]").click()
        pressed = browser.find_elements(By.CSS_SELECTOR, "button[aria-pressed=true]")
        assert [button.get_attribute("data-key") for button in pressed] == [key]

    worst_first = shown("name")
    assert shown("rank") == [str(i) for i in range(10)]
    press("descending")
    scores = [float(score) for score in shown("score")]
    assert scores == sorted(scores, reverse=True)
    press("ascending")
    assert [float(score) for score in shown("score")] == scores[::-1]
    press("name")
    assert shown("name") == sorted(worst_first) != worst_first
    press("worst")
    assert shown("name") == worst_first
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("key", [None, Keys.ESCAPE], ids=["click", "escape"])
def test_pictures_become_larger_and_go_again(browser: webdriver.Chrome, key: str | None) -> None:
    dialog = browser.find_element(By.TAG_NAME, "dialog")
    small = browser.find_element(By.CSS_SELECTOR, ".gallery .pictures")
    assert not dialog.is_displayed()
    small.click()
    large = dialog.find_element(By.CLASS_NAME, "pictures")
    assert large.rect["width"] > 1.5 * small.rect["width"]
    texts = [figure.find_element(By.XPATH, "..").text for figure in (small, large)]
    assert texts[0] == texts[1] != ""
    large.send_keys(key) if key else large.click()
    assert not dialog.is_displayed()
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 400, 1400])
def test_nothing_overflows_sideways(browser: webdriver.Chrome, width: int, theme: str) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script("return document.scrollingElement.scrollWidth") <= width
    first_figure = browser.find_element(By.CSS_SELECTOR, "tbody td").rect
    assert first_figure["x"] + first_figure["width"] <= width
    assert first_figure["height"] < 200
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 30)"}[theme]
    ink = browser.execute_script("return getComputedStyle(document.querySelector('svg text')).fill")
    assert ink == {"light": "rgb(28, 36, 48)", "dark": "rgb(230, 233, 238)"}[theme]
