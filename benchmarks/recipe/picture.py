"""Draw the README's picture: test images of the demo, their heatmaps and masks.

make demo && python -m benchmarks.recipe.picture runs/demo/weave docs/heatmaps.png
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from rd_jax.report.gallery import read_evaluation

SCALE, GAP = 2, 8  # pixels
KINDS = ("good", "scratch", "stain", "missing_thread", "distortion")


def pixels_of(file: bytes) -> np.ndarray:
    """Return [H + GAP, W, 3] uint8 of a picture that the evaluation keeps, white below."""
    with Image.open(io.BytesIO(file)) as image:
        pixels = np.asarray(image.convert("RGB"))
    return np.pad(pixels, ((0, GAP), (0, 0), (0, 0)), constant_values=255)


def main(folder: Path, output: Path) -> None:
    """Write a column for each kind of image: the image, its heatmap, its mask."""
    evaluation = read_evaluation(folder / "evaluation.npz")
    assert evaluation is not None
    shown = [str(evaluation.names[i]) for i in evaluation.shown]
    columns = []
    for kind in KINDS:
        i = shown.index(f"{kind}/000.png")
        files = (evaluation.images[i], evaluation.heatmaps[i], evaluation.masks[i])
        column = np.concatenate([pixels_of(file) for file in files])
        columns.append(np.pad(column, ((0, 0), (0, GAP), (0, 0)), constant_values=255))
    picture = Image.fromarray(np.concatenate(columns, axis=1)[:-GAP, :-GAP])
    output.parent.mkdir(parents=True, exist_ok=True)
    size = (SCALE * picture.width, SCALE * picture.height)
    picture.resize(size, Image.Resampling.LANCZOS).quantize(256).save(output, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
