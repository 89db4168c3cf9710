"""Files are read once; one that changed is read again, whatever was done to its times."""

import hashlib
import os
from pathlib import Path

import pytest

from rd_jax.data import hashes
from rd_jax.data.hashes import content_sha256
from rd_jax.system.errors import UserError


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three files, which count as settled at once, and a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "_SETTLED", 0)
    (tmp_path / "data").mkdir()
    paths = [tmp_path / "data" / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes(1000) + bytes([i]))
    return paths


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Which files were read."""
    read, own = [], hashes._hash

    def counting(path: Path) -> hashes.Hash:
        read.append(path)
        return own(path)

    monkeypatch.setattr(hashes, "_hash", counting)
    return read


def expected(paths: list[Path]) -> str:
    parts = [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_files_are_read_once(paths: list[Path], read: list[Path]) -> None:
    for _ in range(3):
        assert content_sha256(paths) == expected(paths)
    assert sorted(read) == paths
    assert content_sha256([*paths[:1], None]) != content_sha256(paths[:1])


@pytest.mark.parametrize("how", ["written", "replaced", "grown"])
def test_a_file_that_changed_is_read_again_though_its_time_is_as_before(
    paths: list[Path], read: list[Path], tmp_path: Path, how: str
) -> None:
    content_sha256(paths)
    before = paths[1].stat()
    read.clear()
    if how == "replaced":
        (tmp_path / "new").write_bytes(bytes(1000) + b"x")
        os.utime(tmp_path / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
        os.replace(tmp_path / "new", paths[1])
    else:
        with paths[1].open("ab" if how == "grown" else "r+b") as file:
            file.write(b"x")
    os.utime(paths[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert paths[1].stat().st_mtime_ns == before.st_mtime_ns
    assert content_sha256(paths) == expected(paths)
    assert read == [paths[1]]


def test_what_changed_just_now_is_not_remembered(
    paths: list[Path], read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "_SETTLED", 10**12)
    for _ in range(2):
        assert content_sha256(paths) == expected(paths)
    assert len(read) == 6


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b"\xff"])
def test_a_damaged_memory_costs_reading_and_no_error(
    paths: list[Path],
    read: list[Path],
    tmp_path: Path,
    content: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    content_sha256(paths)
    (memory,) = (tmp_path / "cache").rglob("*.json")
    memory.write_bytes(content)
    assert content_sha256(paths) == expected(paths)
    assert len(read) == 6
    assert "all files are read again" in caplog.text


def test_a_file_that_vanished_is_named(paths: list[Path]) -> None:
    content_sha256(paths)
    paths[2].unlink()
    with pytest.raises(UserError, match=r"files cannot be read: .*2\.png"):
        content_sha256(paths)
