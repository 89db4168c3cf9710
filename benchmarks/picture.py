"""The README's picture: test images of the demo, their heatmaps and masks.

make demo && python -m benchmarks.picture runs/demo/weave docs/heatmaps.png
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from rd_jax.report.gallery import read_evaluation
from rd_jax.report.heatmap import coloured
from rd_jax.store.workdir import Training

SCALE, GAP = 2, 8  # pixels
KINDS = ("good", "scratch", "stain", "missing_thread", "distortion")


def main(training: Path, output: Path) -> None:
    """A column for each kind of image: the image, its heatmap, its mask."""
    evaluation = read_evaluation(Training(training, training.name).evaluation)
    assert evaluation is not None
    shown = [str(evaluation.names[i]) for i in evaluation.shown]
    columns = []
    for kind in KINDS:
        i = shown.index(f"{kind}/000.png")
        mask = np.repeat(evaluation.masks[i][..., None], 3, axis=-1)
        heatmap = coloured(evaluation.images[i], evaluation.strengths[i])
        tiles = [
            np.pad(tile, ((0, GAP), (0, GAP), (0, 0)), constant_values=255)
            for tile in (evaluation.images[i], heatmap, mask)
        ]
        columns.append(np.concatenate(tiles))
    picture = Image.fromarray(np.concatenate(columns, axis=1)[:-GAP, :-GAP])
    output.parent.mkdir(parents=True, exist_ok=True)
    size = (SCALE * picture.width, SCALE * picture.height)
    picture.resize(size, Image.Resampling.LANCZOS).quantize(256).save(output, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
