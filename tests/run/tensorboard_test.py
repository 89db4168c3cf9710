"""Event files hold the numbers of the rows."""

from pathlib import Path

import pytest

from rd_jax.run.progress import row_writer
from rd_jax.store.rows import read_rows


def test_every_number_of_a_row_is_an_event_of_its_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="the extra `tensorboard` is not installed")
    from tensorboardX.proto.event_pb2 import Event

    with row_writer(tmp_path / "metrics.jsonl", tmp_path / "events") as write:
        write({"step": 3, "loss": 0.5, "images_per_second": 10.0})
        write({"step": 7, "image_auroc": 0.25, "aupro": None})
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [3, 7]
    (path,) = (tmp_path / "events").iterdir()
    content, found = path.read_bytes(), {}
    while content:  # records: length (8 bytes), its CRC (4), an Event, its CRC (4)
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
        content = content[16 + length :]
    assert found == {
        (3, "loss"): 0.5,
        (3, "images_per_second"): 10.0,
        (7, "image_auroc"): 0.25,
    }
