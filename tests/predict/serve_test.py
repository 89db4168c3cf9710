"""`examples/serve.py`, asked by a real client."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from tornado.netutil import bind_sockets

import rd_jax
from examples import serve
from rd_jax import score_image
from rd_jax.data.decode import read_image
from rd_jax.predict.predictor import Predictor
from rd_jax.report.heatmap import overlay
from tests.command import ROOT, captured
from tests.reference_weights import draw_images


class Answer(NamedTuple):
    status: int
    kind: str
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        assert self.kind.startswith("application/json"), self
        return json.loads(self.body)


def ask(address: str, body: bytes | None) -> Answer:
    """POST the body, or GET without one."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body), timeout=60) as found:
            return Answer(found.status, found.headers["Content-Type"], found.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers["Content-Type"], error.read())


def file_of(picture: Image.Image, form: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **how)
    return file.getvalue()


def drawn(height: int, width: int) -> Image.Image:
    return Image.fromarray(draw_images(1, max(height, width))[0][:height, :width])


@contextmanager
def serving(predictor: Predictor, most_at_once: int) -> Iterator[str]:
    """The application in a thread of this process; its address."""
    loop, sockets = asyncio.new_event_loop(), bind_sockets(0, "127.0.0.1")
    app = serve.application(predictor, most_at_once)
    task = loop.create_task(serve.listen(app, sockets))

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield "http://{}:{}".format(*sockets[0].getsockname())
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(60)
        loop.close()


@pytest.fixture(scope="module")
def address(predictor: Predictor) -> Iterator[str]:
    with serving(predictor, 16) as address:
        yield address


def test_eight_clients_at_once_get_the_scores_of_their_pictures(
    predictor: Predictor, address: str
) -> None:
    pictures = [drawn(30 + 9 * i, 90 - 5 * i) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda p: ask(f"{address}/score", file_of(p)), pictures))
    for picture, answer in zip(pictures, found, strict=True):
        expected = score_image(predictor, picture)
        assert answer.status == 200
        assert answer.json == {
            "score": pytest.approx(expected.score, abs=1e-5),
            "threshold": predictor.thresholds.image_threshold,
            "verdict": "anomalous" if expected.is_anomalous else "normal",
        }


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


@pytest.mark.parametrize(
    "file",
    [
        file_of(drawn(50, 70)),
        file_of(drawn(70, 50).convert("L"), exif=exif(6)),
        file_of(drawn(50, 70), "JPEG", exif=exif(1)),
        file_of(Image.fromarray(np.asarray(drawn(50, 70).convert("L")).astype(np.uint16) * 257)),
    ],
    ids=["plain", "turned", "jpeg", "16-bit"],
)
def test_an_overlay_is_the_upright_picture_under_its_map(
    predictor: Predictor, address: str, file: bytes, tmp_path: Path
) -> None:
    answer = ask(f"{address}/overlay", file)
    assert (answer.status, answer.kind) == (200, "image/png")
    found = Image.open(io.BytesIO(answer.body))
    (tmp_path / "picture").write_bytes(file)
    picture = np.asarray(read_image(tmp_path / "picture"))
    assert (found.format, found.size) == ("PNG", (70, 50))
    result = score_image(predictor, picture)
    scale = predictor.thresholds.map_low, predictor.thresholds.map_high
    expected = overlay(picture, result.anomaly_map, *scale, result.is_anomalous)
    np.testing.assert_allclose(np.asarray(found, int), expected, atol=2)
    assert ask(f"{address}/score", file).json["score"] == pytest.approx(result.score, abs=1e-5)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not an image in PNG"),
        (b"no picture", "not an image in PNG"),
        (file_of(drawn(30, 30))[:300], "can be read"),
        (file_of(Image.new("F", (9, 9)), "TIFF"), "no defined white"),
    ],
    ids=["empty", "text", "cut", "floats"],
)
@pytest.mark.parametrize("where", ["score", "overlay"])
def test_a_body_that_is_no_picture_gets_an_error(
    address: str, body: bytes, said: str, where: str
) -> None:
    answer = ask(f"{address}/{where}", body)
    assert answer.status == 400
    assert said in answer.json["error"]
    assert "send the bytes of an image file" in answer.json["error"]
    assert ask(f"{address}/score", file_of(drawn(30, 30))).status == 200


def test_a_large_body_is_answered_so_and_not_held(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "MOST_BYTES", 1000)
    sizes = []
    fail = serve.Score.fail

    def noted(self: serve.Score, *given: Any) -> None:
        sizes.append(len(self.body))
        fail(self, *given)

    monkeypatch.setattr(serve.Score, "fail", noted)
    answer = ask(f"{address}/score", bytes(2**22))
    assert answer.status == 413
    assert answer.json == {"error": "the body has 4194304 bytes: send at most 1000"}
    assert sizes == [0] or sizes[0] <= 1000


def test_other_methods_are_told_what_to_do(address: str) -> None:
    answer = ask(f"{address}/score", None)
    assert answer.status == 405
    assert "POST a picture to /score" in answer.json["error"]


def test_a_full_queue_is_said_at_once_and_empties(predictor: Predictor) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()

    def score(images: Any) -> Any:
        begun.release()
        assert go_on.wait(60)
        return predictor.score(images)

    body = file_of(drawn(40, 40))
    with (
        serving(predictor._replace(score=score), 3) as address,
        ThreadPoolExecutor(8) as clients,
    ):
        asked = [clients.submit(ask, f"{address}/score", body) for _ in range(8)]
        begun.acquire(timeout=60)
        done = as_completed(asked, timeout=60)
        refused = [next(done).result() for _ in range(5)]
        assert {answer.status for answer in refused} == {503}
        assert "send it again later" in refused[0].json["error"]
        go_on.set()
        statuses = sorted(each.result(60).status for each in asked)
        assert statuses == [200] * 3 + [503] * 5
        assert ask(f"{address}/score", body).status == 200


def test_the_process_serves_until_it_is_stopped(predictor: Predictor, training: Path) -> None:
    code = "import sys, tests.tiny; from examples import serve; sys.exit(serve.main(sys.argv[1:]))"
    flags = ["--workdir", str(training), "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        address = process.stdout.readline().partition("/score")[0]
        picture = drawn(64, 48)
        found = ask(f"{address}/score", file_of(picture)).json["score"]
        assert found == pytest.approx(score_image(predictor, picture).score, abs=1e-5)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_server_stopped_while_it_loads_ends_once_it_has_loaded(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_loaded = []

    def load(_: str) -> Predictor:
        os.kill(os.getpid(), signal.SIGTERM)
        has_loaded.append(sum(range(1000)))  # a signal's handler runs between two lines
        return predictor

    monkeypatch.setattr(rd_jax, "load_predictor", load)
    monkeypatch.delattr(serve, "bind_sockets")
    done = captured(serve.main, ["--workdir", "any"])
    assert (done.returncode, done.stdout) == (0, "")
    assert has_loaded


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "examples/serve.py", "--workdir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no checkpoint in ")
    assert done.stderr.count("\n") == 1
