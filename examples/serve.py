"""Serves a trained model over HTTP: it takes a picture and returns a verdict or an overlay.

pip install tornado
python examples/serve.py --workdir runs/mine --port 8000

curl --data-binary @photo.png http://localhost:8000/score
curl --data-binary @photo.png http://localhost:8000/overlay --output overlay.png

One process scores one picture after the other. An error is JSON, {"error": "..."}: 400 if the
body is no picture, 413 if it is too large, 503 if too many pictures wait already. Ctrl-C or SIGTERM
ends it with exit code 0, but not before the model is loaded. The exit code of a mistake is 2.
"""

import asyncio
import io
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from socket import socket
from typing import Any

import numpy as np
import tornado.httpserver
import tornado.web
from PIL import Image, ImageOps
from tornado.netutil import bind_sockets

import rd_jax
from rd_jax.data.decode import in_8_bits, png
from rd_jax.data.headers import open_image
from rd_jax.predict.predictor import Predictor
from rd_jax.report.heatmap import overlay
from rd_jax.system.command import Parser, require_devices, run_command
from rd_jax.system.errors import UserError, first_line
from rd_jax.system.interruption import deferred

MOST_BYTES = 2**26  # of a request's body
INTERRUPTED = 130  # exit code of `run_command`


class Body(io.BytesIO):
    """The bytes of a picture in a request, as a file."""

    name = "body"


def picture_of(body: bytes) -> Image.Image:
    """Return the picture in the body. Raise UserError if it cannot be read."""
    try:
        picture = open_image(Body(body))
        picture.load()
    except Exception as error:  # decoders raise all kinds of errors for broken files
        raise UserError(
            f"the body is no picture that can be read ({first_line(error)}): send the bytes of an "
            "image file, as curl --data-binary @FILE does"
        ) from error
    return picture


@tornado.web.stream_request_body  # so that a large body gets an answer and is never held
class Score(tornado.web.RequestHandler):
    """Answer with JSON: score, threshold, verdict."""

    def initialize(
        self, predictor: Predictor, pool: ThreadPoolExecutor, queue: asyncio.Semaphore
    ) -> None:
        """Take the objects that all requests share."""
        self.predictor, self.pool, self.queue = predictor, pool, queue
        self.body, self.num_bytes = bytearray(), 0

    def data_received(self, chunk: bytes) -> None:
        """Keep a part of the body, unless it is too large."""
        self.num_bytes += len(chunk)
        if self.num_bytes <= MOST_BYTES:
            self.body += chunk

    async def post(self) -> None:
        """Score the picture that the body holds."""
        if self.num_bytes > MOST_BYTES:
            self.fail(413, f"the body has {self.num_bytes} bytes: send at most {MOST_BYTES}")
        elif self.queue.locked():
            self.fail(503, "too many pictures wait already: send it again later")
        else:
            async with self.queue:
                await self.reply()

    async def reply(self) -> None:
        """Compute the answer in the pool's thread, so that other requests can arrive."""
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(self.pool, self.answer, bytes(self.body))
        except UserError as error:
            self.fail(400, str(error))
        else:
            if isinstance(answer, bytes):
                self.set_header("Content-Type", "image/png")
            self.finish(answer)

    def fail(self, status: int, problem: str) -> None:
        """Answer with an error as JSON."""
        self.set_status(status)
        self.finish({"error": problem})

    def write_error(self, status_code: int, **_: Any) -> None:
        """Answer with JSON where tornado would send a page."""
        self.fail(status_code, f"{self._reason}: POST a picture to /score or /overlay")

    def answer(self, body: bytes) -> dict | bytes:
        """Return the answer for a picture's file."""
        result = rd_jax.score_image(self.predictor, picture_of(body))
        verdicts = {None: None, True: "anomalous", False: "normal"}
        return {
            "score": result.score,
            "threshold": self.predictor.thresholds.image_threshold,
            "verdict": verdicts[result.is_anomalous],
        }


class Overlay(Score):
    """Answer with the picture under its anomaly map, as PNG."""

    def answer(self, body: bytes) -> dict | bytes:
        """Return the file of the overlay."""
        picture = in_8_bits(ImageOps.exif_transpose(picture_of(body))).convert("RGB")
        result = rd_jax.score_image(self.predictor, picture)
        scale = self.predictor.thresholds.map_low, self.predictor.thresholds.map_high
        return png(overlay(np.asarray(picture), result.anomaly_map, *scale, result.is_anomalous))


def application(predictor: Predictor, most_at_once: int) -> tornado.web.Application:
    """Return the application with its two addresses, /score and /overlay."""
    shared = {
        "predictor": predictor,
        "pool": ThreadPoolExecutor(1),
        "queue": asyncio.Semaphore(most_at_once),
    }
    return tornado.web.Application([("/score", Score, shared), ("/overlay", Overlay, shared)])


async def listen(app: tornado.web.Application, sockets: Sequence[socket]) -> None:
    """Answer requests until this is cancelled."""
    server = tornado.httpserver.HTTPServer(app, max_body_size=sys.maxsize)
    server.add_sockets(sockets)
    try:
        await asyncio.Event().wait()
    finally:
        server.stop()
        await server.close_all_connections()


def main(argv: Sequence[str]) -> int:
    """Parse the flags, load, listen; return the exit code."""

    def body() -> int:
        parser = Parser("python examples/serve.py", __doc__)
        add = parser.add_argument
        add("--workdir", required=True, help="of a training: see rd_jax.main")
        add("--address", default="127.0.0.1", help="0.0.0.0 also serves other machines")
        add("--port", type=int, default=8000, help="0 takes a free port")
        add("--queue", type=int, default=16, help="most pictures at once, scored or waiting")
        flags = parser.parse_args(argv)
        with deferred("ending when the model is loaded") as should_stop:
            require_devices()
            predictor = rd_jax.load_predictor(flags.workdir)
            # Compile now, so that the first picture is as fast as the others.
            rd_jax.score_image(predictor, np.zeros((*predictor.size, 3), np.uint8))
        if should_stop():
            return 0
        sockets = bind_sockets(flags.port, flags.address)
        host, port = sockets[0].getsockname()[:2]
        print(f"http://{host}:{port}/score and /overlay take pictures by POST", flush=True)
        asyncio.run(listen(application(predictor, flags.queue), sockets))
        return 0

    code = run_command(body, lambda _: "stopped")
    return 0 if code == INTERRUPTED else code  # a server ends by being stopped


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
