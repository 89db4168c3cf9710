"""Whole files or none, in the places that a user means."""

import errno
import os
import pwd
from pathlib import Path
from typing import NoReturn

import pytest

from rd_jax.system import files
from rd_jax.system.errors import UserError
from rd_jax.system.files import cache_folder, check_writable, is_inside, user_path, write_whole


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_may_be_read_by_whom_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "new" / "x", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "x").stat().st_mode & 0o777 == mode
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x"]


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: bytes) -> NoReturn:
        path.touch()
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    (tmp_path / "x").write_text("before")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match="x: Disk quota exceeded; free some: no earlier file"):
            write_whole(tmp_path / "x", b"after")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
    with pytest.raises(UserError, match=r"cannot write .*x/y: Not a directory"):
        check_writable(tmp_path / "x" / "y")
    check_writable(tmp_path / "made" / "later")


@pytest.fixture
def _homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that is not in the system's list, as in many containers."""

    def unknown(uid: int) -> NoReturn:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    files.temporary_cache.cache_clear()


@pytest.mark.usefixtures("_homeless")
def test_without_a_home_there_is_no_cache_which_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert cache_folder() == cache_folder()
    assert caplog.text.count("no cache is kept (") == 1
    assert "set XDG_CACHE_HOME" in caplog.text
    with pytest.raises(UserError, match="~/x: there is no home folder"):
        user_path("~/x")
    assert user_path("~x") == Path("~x")


def test_a_bucket_is_no_folder() -> None:
    where = "gs://bucket/runs is no path on this machine: give one, or mount that bucket"
    with pytest.raises(UserError, match=where):
        user_path("gs://bucket/runs")


@pytest.mark.parametrize("there", ["a file", "a folder below a file", "the kernel's"])
def test_a_cache_that_cannot_be_written_is_replaced_for_this_process(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    there: str,
) -> None:
    (tmp_path / "file").touch()
    places = {"a file": tmp_path / "file", "the kernel's": Path("/proc/cache")}
    monkeypatch.setenv("XDG_CACHE_HOME", str(places.get(there, tmp_path / "file" / "x")))
    files.temporary_cache.cache_clear()
    first = cache_folder()
    (first / "x").write_text("kept while the process lasts")
    assert cache_folder() == first
    assert caplog.text.count("no cache is kept") == 1


def test_a_relative_cache_is_in_the_folder_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert cache_folder() == tmp_path / "cache" / "rd_jax"


def test_links_lead_inside(tmp_path: Path) -> None:
    (tmp_path / "data" / "x").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for path in ("data", "data/x/new", "link/x", "link/new/y", "x/../data/x"):
        assert is_inside(tmp_path / path, tmp_path / "data")
    for path in (".", "data2", "x"):
        assert not is_inside(tmp_path / path, tmp_path / "data")
    assert not is_inside(tmp_path / "data", tmp_path / "absent")
