"""Measure host memory of training on few and on many images. It must not grow with their number.

python -m benchmarks.speed.memory [--images 1000 100000]

It writes small files. rd_jax.main decodes them into the cache and trains for some steps. The table
shows its peak of anonymous memory (Linux). Mapped pages of the cache do not count, since the system
can take them back.
"""

import argparse
import re
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.speed.of_runs import start, wait_for
from benchmarks.table import print_heading, print_line

SIZE, BATCH_SIZE, NUM_STEPS = 32, 16, 50


def write_category(data_dir: Path, count: int) -> None:
    """Write `count` PNG files of 32x32 pixels for training, and one for the test."""
    rng = np.random.default_rng(0)
    for i in range(count + 1):
        path = data_dir / "noise" / ("train" if i else "test") / f"good/{i:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(path)


def train(data_dir: Path) -> tuple[int, float]:
    """Decode and train; return peak bytes and images per second."""
    fields = {"data_dir": data_dir, "backbone": "resnet18", "teacher_weights": "random"}
    fields |= {"image_size": SIZE, "batch_size": BATCH_SIZE, "log_every_steps": NUM_STEPS}
    fields |= {"keep_features": False}  # which would grow with the number of images
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    process = start("--config", "mvtec:noise", *flags, cache=data_dir / "cache")
    peak, stopped = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stopped.wait(0.02):
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, *(1024 * int(kib) for kib in re.findall(r"RssAnon:\s+(\d+)", status)))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        wait_for(", loss ", process)  # the first steps compile
        begun = time.perf_counter()
        wait_for(", loss ", process)
        seconds = time.perf_counter() - begun
    finally:
        stopped.set()
        watching.join()
        process.kill()
    return peak, NUM_STEPS * BATCH_SIZE / seconds


def main() -> None:
    """Train on each number of images and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 100000])
    print_heading(["images", "peak MiB", "images/s"])
    for count in parser.parse_args().images:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            write_category(Path(folder), count)
            peak, speed = train(Path(folder))
            print_line([str(count), f"{peak >> 20}", f"{speed:.0f}"])


if __name__ == "__main__":
    main()
