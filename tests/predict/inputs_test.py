import os
from pathlib import Path

import pytest
from PIL import Image

from rd_jax.predict.inputs import find_inputs
from rd_jax.predict.outputs import FOLDERS
from rd_jax.system.errors import UserError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; arguments are relative to it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def found(*arguments: str, output: str = "out") -> dict[str, str]:
    """Names by path."""
    inputs = find_inputs([Path(a) for a in arguments], Path(output))
    assert len(set(inputs.values())) == len(inputs)
    return {str(path): name for path, name in inputs.items()}


@pytest.mark.usefixtures("root")
def test_a_folder_gives_the_images_below_it_sorted_and_nothing_hidden() -> None:
    touch("a/z.png", "a/sub/deep/x.JPG", "a/b.tiff", "a/notes.txt", "a/.hidden.png", "a/.git/y.png")
    expected = {"a/b.tiff": "b", "a/sub/deep/x.JPG": "sub/deep/x", "a/z.png": "z"}
    assert list(found("a").items()) == list(expected.items())


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["a/1.png"], ["1"]),
        (["a/1.png", "b/1.png"], ["a/1", "b/1"]),
        (["b", "a"], ["b/1", "a/1", "a/1.png", "a/c/1"]),
        (["a/c", "a"], ["c/1", "1", "1.png"]),
        (["a/1.png", "./a/../a/1.png"], ["1"]),
        (["b/../a/c"], ["1"]),
        (["a/odd"], ["odd"]),
        (["d"], ["1", "1.PNG", "1.png_2", "1.png.gif"]),
    ],
)
def test_names_are_the_paths_below_the_folder_that_holds_all_inputs(
    arguments: list[str], names: list[str]
) -> None:
    """Without suffixes, unless they tell two apart, also where a disk ignores case."""
    touch("a/1.png", "a/1.jpg", "a/c/1.png", "b/1.png", "a/odd")
    touch("d/1.JPG", "d/1.PNG", "d/1.png", "d/1.png.gif")
    assert list(found(*arguments).values()) == names


@pytest.mark.usefixtures("root")
def test_all_that_looks_like_an_image_is_found_and_nothing_else() -> None:
    meant = ["1.gif", "2.jfif", "3.ppm", "4.jp2", "5.heic", "6.avif", "7.JXL", "8.dng", "a.svg"]
    touch(*(f"a/{name}" for name in meant), "a/Thumbs.db", "a/n.csv", "a/n.json", "a/empty")
    touch("a/@eaDir/1.gif/THUMB.jpg", "a/__MACOSX/1.png", "a/film.mp4", "a/report.pdf")
    Path("a/README").write_text("Python's")
    Image.new("L", (8, 8)).save("a/scan", "PNG")
    Image.new("L", (8, 8)).save("a/scan.001", "GIF")
    os.mkfifo("a/pipe")
    assert list(found("a")) == [f"a/{name}" for name in (*meant, "scan", "scan.001")]
    os.mkfifo("a/pipe.png")
    with pytest.raises(UserError, match=r"a/pipe.png is neither a file nor a folder"):
        found("a")


@pytest.mark.usefixtures("root")
def test_links_are_followed_but_not_in_circles() -> None:
    touch("elsewhere/1.png", "a/2.png")
    os.symlink("../elsewhere", "a/linked")
    os.symlink("../a", "elsewhere/back")
    os.symlink(".", "a/itself")
    assert list(found("a")) == ["a/2.png", "a/linked/1.png"]


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("output", ["a/out", "a", "."])
def test_earlier_outputs_are_no_inputs(output: str) -> None:
    touch("a/1.png", *(f"{output}/{folder}/1.png.png" for folder in FOLDERS))
    assert list(found("a", output=output)) == ["a/1.png"]
    if output == "a/out":
        touch("a/out/stray.png")
        assert list(found("a", output=output)) == ["a/1.png"]


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("absent", "absent does not exist"),
        ("absent.png", "absent.png does not exist"),
        ("empty", "empty holds no images, nor does any folder in it"),
        ("out/heatmaps", "out/heatmaps is where outputs are written: choose another --output"),
        ("out/masks/x/1.png", "is where outputs are written"),
        ("pipe.png", "pipe.png is neither a file nor a folder"),  # reading it would never end
    ],
)
def test_an_argument_without_images_is_an_error(argument: str, message: str) -> None:
    touch("a/1.png", "empty/notes.txt", "out/heatmaps/1.png", "out/masks/x/1.png")
    os.mkfifo("pipe.png")
    with pytest.raises(UserError, match=message):
        found("a", argument)
