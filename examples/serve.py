"""Serves a trained model over HTTP: a picture in, a verdict and an overlay out.

pip install tornado
python examples/serve.py --workdir runs/mine --port 8000

curl --data-binary @photo.png http://localhost:8000/score
curl --data-binary @photo.png http://localhost:8000/overlay --output overlay.png

One process scores one picture after the other. If `--queue` pictures wait already, the answer is
503: try again later.
"""

import argparse
import asyncio
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tornado.web
from PIL import Image

import rd_jax
from rd_jax.data.decode import png
from rd_jax.predict.predictor import Predictor
from rd_jax.report.heatmap import overlay

MOST_BYTES = 2**26  # of a file


class Score(tornado.web.RequestHandler):
    """Answer with JSON: score, threshold, verdict."""

    def initialize(
        self, predictor: Predictor, pool: ThreadPoolExecutor, queue: asyncio.Semaphore
    ) -> None:
        """Take what all requests share."""
        self.predictor, self.pool, self.queue = predictor, pool, queue

    async def post(self) -> None:
        """Score the picture that the request holds."""
        if self.queue.locked():
            return self.fail(503, "too many pictures are waiting: try again later")
        async with self.queue:
            loop = asyncio.get_running_loop()
            try:
                answer = await loop.run_in_executor(self.pool, self.answer, self.request.body)
            except OSError as error:  # which Pillow raises for what is no picture
                return self.fail(400, f"the request holds no picture: {error}")
            except ValueError as error:
                return self.fail(400, str(error))
        self.finish(answer)
        return None

    def fail(self, status: int, problem: str) -> None:
        """Answer with an error as JSON."""
        self.set_status(status)
        self.finish({"error": problem})

    def answer(self, body: bytes) -> dict | bytes:
        """Return what is sent back for the file of a picture."""
        result = rd_jax.score_image(self.predictor, Image.open(io.BytesIO(body)))
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
        self.set_header("Content-Type", "image/png")
        picture = Image.open(io.BytesIO(body)).convert("RGB")
        result = rd_jax.score_image(self.predictor, picture)
        thresholds = self.predictor.thresholds
        scale = thresholds.map_low, thresholds.map_high
        return png(overlay(np.asarray(picture), result.anomaly_map, *scale))


def application(predictor: Predictor, most_waiting: int) -> tornado.web.Application:
    """Return the application with its two addresses, /score and /overlay."""
    shared = {
        "predictor": predictor,
        "pool": ThreadPoolExecutor(1),
        "queue": asyncio.Semaphore(most_waiting),
    }
    return tornado.web.Application([("/score", Score, shared), ("/overlay", Overlay, shared)])


async def serve(workdir: str, port: int, most_waiting: int) -> None:
    """Listen until the process ends; the first picture is no slower than the others."""
    predictor = rd_jax.load_predictor(workdir)
    rd_jax.score_image(predictor, np.zeros((*predictor.size, 3), np.uint8))
    application(predictor, most_waiting).listen(port, "127.0.0.1", max_buffer_size=MOST_BYTES)
    print(f"http://127.0.0.1:{port}/score and /overlay take pictures by POST")
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--queue", type=int, default=16)
    flags = parser.parse_args()
    asyncio.run(serve(flags.workdir, flags.port, flags.queue))
