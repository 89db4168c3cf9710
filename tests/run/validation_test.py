"""Images that the data hold out themselves, in a table's lines of validation."""

import csv
from pathlib import Path

import jax
import numpy as np
import pytest

import rd_jax
from rd_jax.data.order import holdout_indices
from rd_jax.data.sources import Source, find_categories
from rd_jax.method.metrics import METRICS
from rd_jax.store.results import VERDICTS
from rd_jax.store.rows import read_json
from tests.command import assert_one_line, evaluation, results, run, succeeded, training
from tests.run.conftest import HELD_OUT, HOLDOUT


@pytest.fixture
def table(data_dir: Path, tmp_path: Path) -> Path:
    """Names the images of `weave` and for validation those that the hold-out of seed 0 takes."""
    [category] = find_categories(Source(str(data_dir), "", (32, 32), "stretch"), "weave")
    _, held_out = holdout_indices(0, 0.5, category.num_train)
    with (tmp_path / "weave.csv").open("w") as file:
        lines = csv.writer(file)
        lines.writerow(["image", "split", "label", "mask"])
        for i, row in enumerate(category.rows):
            split = "validation" if row.split == "train" and i in held_out else row.split
            lines.writerow([row.image, split, row.label, *row.masks])
    return tmp_path / "weave.csv"


def test_a_table_with_the_held_out_images_gives_what_the_folder_gives_bit_for_bit(
    table: Path, trained: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "runs"
    succeeded(*training(table, workdir))
    one, other = (results(folder / "weave") for folder in (workdir, trained))
    assert one["num_held_out"] == HELD_OUT
    for name in (*METRICS, *VERDICTS, "image_threshold", "pixel_threshold", "test_sha256"):
        assert one[name] == other[name]
    one, other = (read_json(folder / "weave/thresholds.json") for folder in (workdir, trained))
    assert one["normal"] == other["normal"]
    students = [rd_jax.restore(folder, "weave")[1] for folder in (workdir, trained)]
    for leaves in zip(*map(jax.tree.leaves, students), strict=True):
        np.testing.assert_array_equal(*leaves)

    (workdir / "weave/thresholds.json").unlink()  # which another evaluation scores anew
    succeeded(*evaluation(workdir))
    assert read_json(workdir / "weave/thresholds.json")["normal"] == other["normal"]

    table.write_text(table.read_text().replace("validation", "train"))
    assert_one_line(run(*training(table, workdir)), "other training images of weave than are there")


def test_a_hold_out_beside_images_for_validation_is_refused(table: Path, tmp_path: Path) -> None:
    done = run(*training(table, tmp_path / "runs", *HOLDOUT))
    assert_one_line(done, f"config.holdout=0.5: the data have {HELD_OUT} images for validation")
