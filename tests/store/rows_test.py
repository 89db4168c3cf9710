"""Rows and arrays come back as they were written; what is damaged is named and left alone."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from rd_jax.store.rows import (
    append_row,
    csv_table,
    drop_rows_after,
    read_arrays,
    read_json,
    read_rows,
    write_arrays,
    write_json,
)


def test_rows_are_those_lines_that_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n\xff\n{"step": 2}\n{"st')
    assert read_rows(path) == [{"step": 1, "loss": 2.0}, {"step": 2}]
    drop_rows_after(path, 1)
    append_row(path, {"step": 2, "loss": 0.1})
    assert read_rows(path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 0.1}]
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_row(path, {"step": 3, "loss": float("nan")})
    drop_rows_after(tmp_path / "absent", 1)
    assert read_rows(tmp_path / "absent") == []


def test_an_object_comes_back_and_anything_else_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "new" / "x.json"
    write_json(path, {"name": "織", "value": 0.1})
    assert read_json(path) == {"name": "織", "value": 0.1}
    assert read_json(tmp_path / "absent") == {}
    assert not caplog.records
    for content in (b"[1]", b"7", b'{"a": 1', b"\xff"):
        caplog.clear()
        path.write_bytes(content)
        assert read_json(path) == {}
        assert f"{path} is left out, since it cannot be read" in caplog.text


def test_a_table_has_all_fields_of_all_rows() -> None:
    assert csv_table([{"a": 1}, {"b": "x,y", "a": None}]) == 'a,b\n1,\n,"x,y"\n'


def test_arrays_are_read_as_they_were_written(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array("text"), "c": np.array(True)}
    write_arrays(tmp_path / "new" / "x.npz", arrays)
    found = read_arrays(tmp_path / "new" / "x.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_damaged_files_of_arrays_are_named_and_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = tmp_path / "whole.npz"
    write_arrays(whole, {"a": np.arange(5000.0)})
    content = whole.read_bytes()
    for name, damaged in {
        "empty": b"", "text": b"no arrays", "cut": content[: len(content) // 2],
        "altered": content[:200] + b"?" + content[201:],
    }.items():  # fmt: skip
        path = tmp_path / f"{name}.npz"
        path.write_bytes(damaged)
        assert read_arrays(path) == {}
        assert f"{path} is left out" in caplog.text
        assert path.read_bytes() == damaged
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as file:
        file.writestr("a.txt", "not an array")
    read_arrays(tmp_path / "zip.npz")
    (tmp_path / "folder.npz").mkdir()
    assert read_arrays(tmp_path / "folder.npz") == {}
    assert read_arrays(tmp_path / "absent.npz") == {}
