"""Draw the README's picture: test images of the demo, their heatmaps and the truth.

make demo && python -m benchmarks.recipe.picture runs/demo/weave docs/heatmaps.png
"""

import io
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from rd_jax.report.gallery import read_evaluation
from rd_jax.report.heatmap import drawn
from rd_jax.store.rows import read_json
from rd_jax.store.thresholds import read_thresholds

LANCZOS = Image.Resampling.LANCZOS
SCALE, GAP = 2, 8  # pixels
LEFT, TOP = 110, 30  # pixels, for the names of rows and columns
ROWS = ("image", "heatmap", "truth")
KINDS = ("good", "scratch", "stain", "missing_thread", "distortion")


def main(folder: Path, output: Path) -> None:
    """Write a column for each kind of image: the image, its heatmap, the truth."""
    evaluation = read_evaluation(folder / "evaluation.npz")
    stored = read_thresholds(
        folder / "thresholds.json", read_json(folder / "results.json")["checkpoint"]
    )
    assert evaluation is not None
    assert stored is not None
    ends = stored.thresholds.map_low, stored.thresholds.map_high
    limit = stored.thresholds.image_threshold
    shown = [str(evaluation.names[i]) for i in evaluation.shown]
    height, width = (SCALE * int(pixels) + GAP for pixels in evaluation.size)
    size = (LEFT + width * len(KINDS) - GAP, TOP + height * len(ROWS) - GAP)
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(18)
    for row, name in enumerate(ROWS):
        at = (LEFT - 2 * GAP, TOP + row * height + (height - GAP) // 2)
        draw.text(at, name, "black", font, "rm")
    for column, kind in enumerate(KINDS):
        left, i = LEFT + column * width, shown.index(f"{kind}/000.png")
        draw.text((left + (width - GAP) // 2, TOP // 2), kind, "black", font, "mm")
        is_anomalous = limit is not None and evaluation.scores[evaluation.shown[i]] > limit
        image, anomaly_map = evaluation.images[i], evaluation.maps[i] * evaluation.map_unit
        files = (image, drawn(image, anomaly_map, ends, is_anomalous), evaluation.masks[i])
        for row, file in enumerate(files):
            with Image.open(io.BytesIO(file)) as opened:
                large = opened.convert("RGB").resize((width - GAP, height - GAP), LANCZOS)
            picture.paste(large, (left, TOP + row * height))
    output.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(256).save(output, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
