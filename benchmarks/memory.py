"""Host memory of training on few and on many images: it must not grow with their number.

python -m benchmarks.memory [--images 1000,100000]

Small files are written, decoded into the cache and trained on for some steps. What counts is the
peak of anonymous memory (Linux): mapped pages of the cache are the system's to take back.
"""

import io
import itertools
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import optax
from absl import app, flags
from PIL import Image

from benchmarks.speed_jax import model_of
from rd_jax import create_train_state
from rd_jax.data.images import load_images
from rd_jax.method.loss import per_position_cosine_loss
from rd_jax.method.train import make_parallel_train_steps
from rd_jax.report.tables import markdown_table
from rd_jax.run.loop import steps_per_dispatch, training
from rd_jax.weights.teacher import find_teacher

SIZE, BATCH_SIZE, NUM_DISPATCHES = 32, 16, 50


def write_images(folder: Path, count: int) -> None:
    """So many PNG files of 32x32 pixels."""
    rng = np.random.default_rng(0)
    for i in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(file, "PNG")
        (folder / f"{i:06}.png").write_bytes(file.getvalue())


class PeakMemory:
    """The peak of this process's anonymous memory, in bytes, until it is stopped."""

    def __init__(self) -> None:
        self.peak, self._stopped = 0, threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stopped.wait(0.02):
            status = Path("/proc/self/status").read_text()
            (kilobytes,) = re.findall(r"RssAnon:\s+(\d+) kB", status)
            self.peak = max(self.peak, 1024 * int(kilobytes))

    def stop(self) -> int:
        """Stops sampling and returns the peak."""
        self._stopped.set()
        self._thread.join()
        return self.peak


def train(folder: Path) -> tuple[int, float]:
    """Peak memory and images per second of decoding and training on what the folder holds."""
    memory = PeakMemory()
    model, optimizer = model_of("resnet18"), optax.adam(0.005, 0.5, 0.999)
    with mock.patch.dict("os.environ", XDG_CACHE_HOME=str(folder.parent / "cache")):
        images = load_images(sorted(folder.iterdir()), SIZE)[0]
    max_steps = steps_per_dispatch(BATCH_SIZE, (SIZE, SIZE))
    dispatches = training(
        make_parallel_train_steps(model, optimizer, per_position_cosine_loss, max_steps),
        max_steps,
        find_teacher("resnet18", "random").variables,
        images,
        create_train_state(model, optimizer, jax.random.key(0)),
        last_step=10**6,
        batch_size=BATCH_SIZE,
        seed=0,
    )
    _, _, metrics = next(dispatches)
    jax.block_until_ready(metrics)
    start = time.perf_counter()
    for _, _, metrics in itertools.islice(dispatches, NUM_DISPATCHES):  # noqa: B007
        pass
    jax.block_until_ready(metrics)
    seconds = time.perf_counter() - start
    return memory.stop(), NUM_DISPATCHES * max_steps * BATCH_SIZE / seconds


def main(_: list[str]) -> None:
    """Measures each number of images in a process of its own and prints a table."""
    if flags.FLAGS.folder:
        print(*train(Path(flags.FLAGS.folder)))
        return
    rows = []
    for count in flags.FLAGS.images:
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "images"
            folder.mkdir()
            write_images(folder, int(count))
            command = [sys.executable, "-m", "benchmarks.memory", f"--folder={folder}"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            peak, speed = map(float, done.stdout.split())
            rows.append([count, f"{peak / 2**20:.0f}", f"{speed:.0f}"])
    print(markdown_table(["images", "peak MiB", "images/s"], rows))


if __name__ == "__main__":
    flags.DEFINE_list("images", ["1000", "100000"], "Numbers of images.")
    flags.DEFINE_string("folder", "", "Measure here; the command calls itself with it.")
    app.run(main)
