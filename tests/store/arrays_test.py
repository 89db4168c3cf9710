import zipfile
from pathlib import Path

import numpy as np
import pytest

from rd_jax.store.arrays import read_arrays, write_arrays


def test_arrays_are_read_as_they_were_written(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array("text"), "c": np.array(True)}
    write_arrays(tmp_path / "new" / "x.npz", arrays)
    found = read_arrays(tmp_path / "new" / "x.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_what_is_no_file_of_arrays_is_named_and_left_alone(
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
