"""Scores image files with a trained checkpoint.

python -m rd_jax.predict --workdir DIR[/CATEGORY] IMAGES_OR_FOLDERS... --output OUT
    [--heatmaps=PIXELS] [--heatmap_format=png|jpg] [--maps=npy|png16] [--masks]
    [--batch_size=N] [--threshold=X] [--teacher_weights=FILE]
    [--false_positive_rate=X] [--pixel_false_positive_rate=X] [--blur_sigma=X]
    [--map_fusion=sum|product] [--image_score=max|sum]

OUT/predictions.csv and OUT/predictions.jsonl get a row for each image: file, score, threshold,
verdict, and where in OUT its heatmap, map and mask are. These are named after the image: x/1.jpg
below the folder given becomes heatmaps/x/1.jpg.png; of several folders, below the one that holds
them all. Names that the file system does not take are shortened. The exit code is 0 if all images
were scored, 1 if some could not be read, 2 for a mistake.
"""

import argparse
import logging
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from rd_jax.method.calibration import with_threshold
from rd_jax.predict.inputs import find_inputs
from rd_jax.predict.outputs import (
    FOLDERS,
    Outputs,
    check_output,
    distinct,
    tables,
    write_images,
    write_scale,
)
from rd_jax.predict.predictor import Predictor, load_predictor, score_files
from rd_jax.report.promise import promise
from rd_jax.run.trained import add_applied, applied
from rd_jax.store.rows import Row
from rd_jax.system.compilation import keep_compiled_programs
from rd_jax.system.console import Parser, log_to_stderr, path
from rd_jax.system.environment import (
    num_processors,
    read_names_as_utf8,
    require_devices,
    settle,
)
from rd_jax.system.errors import EXPECTED, UserError, explained, printable

logger = logging.getLogger("rd_jax.predict")  # with python -m, __name__ is no part of the package

_LOG_EVERY = 100  # images, where there is no terminal


def main(argv: Sequence[str]) -> int:
    """Parses the flags, scores, says what came out; returns the exit code."""
    log_to_stderr()
    counts: Counter[str] = Counter()
    try:
        settle()
        flags = _parse(argv)
        check_output(flags.output)
        inputs = find_inputs(flags.images, flags.output, FOLDERS)
        counts["images"] = len(inputs)
        require_devices()
        keep_compiled_programs()
        predictor = load_predictor(flags.workdir, flags.teacher_weights, **applied(flags))
        _follow(predict(predictor, inputs, _outputs(flags, predictor), flags.batch_size), counts)
    except EXPECTED as error:
        kept = f" ({_summary(counts)})" if counts["scored"] else ""
        print(f"error: {explained(error)}{kept}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted: {_summary(counts)}", file=sys.stderr)
        return 130
    folder = printable(str(flags.output))
    print(f"{_summary(counts)}. Results are in {folder}: predictions.csv, predictions.jsonl")
    return 1 if counts["failed"] else 0


def predict(
    predictor: Predictor, inputs: Mapping[Path, str], outputs: Outputs, batch_size: int
) -> Iterator[Row]:
    """Scores images and writes what came out; yields each row when it is on disk, in order.

    `inputs` are paths and what their outputs are named after. All rows of a batch are on disk
    before the next one is scored. Raises UserError if a score is not finite or something cannot
    be written.
    """
    names = distinct(inputs.values())
    scored = score_files(predictor, inputs, batch_size, hold_images=outputs.take_images)
    results = zip(scored, names, strict=True)
    with tables(outputs.folder) as append, ThreadPoolExecutor(num_processors()) as pool:
        write_scale(outputs)
        while batch := list(islice(results, batch_size)):
            for row in pool.map(partial(write_images, outputs), *zip(*batch, strict=True)):
                append(row)
                yield row


def _follow(rows: Iterator[Row], counts: Counter[str]) -> None:
    """Counts the rows and shows progress: a bar on a terminal, log lines elsewhere."""
    total, on_terminal = counts["images"], sys.stderr.isatty()
    bar = tqdm(rows, total=total, unit="image", disable=not on_terminal)
    for num_done, row in enumerate(bar, 1):
        if row["error"]:
            tqdm.write(printable(f"cannot read {row['file']}: {row['error']}"), file=sys.stderr)
        counts["failed" if row["error"] else "scored"] += 1
        counts["anomalous"] += row["verdict"] == "anomalous"
        if num_done % _LOG_EVERY == 0 and not on_terminal:
            logger.info("%d of %d images", num_done, total)


def _summary(counts: Counter[str]) -> str:
    text = f"{counts['scored']} of {counts['images']} images scored"
    if counts["anomalous"]:
        text += f", {counts['anomalous']} of them anomalous"
    return text + (f"; {counts['failed']} could not be read" if counts["failed"] else "")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("python -m rd_jax.predict", __doc__)

    def at_least(minimum: int, text: str) -> int:
        if int(text) < minimum:
            raise ValueError
        return int(text)

    def batch_size(text: str) -> int:  # which the message of a mistake names
        return at_least(1, text)

    def heatmaps(text: str) -> int:
        return at_least(0, text)

    def number(text: str) -> float:
        if not math.isfinite(float(text)):
            raise ValueError
        return float(text)

    add = parser.add_argument
    add("images", nargs="+", type=Path, help="image files, or folders that are searched for them")
    add("--workdir", required=True, type=path, help="of a training: see rd_jax.main")
    add("--output", required=True, type=path, help="the folder to write to")
    add(
        "--heatmaps",
        type=heatmaps,
        default=sys.maxsize,
        metavar="PIXELS",
        help="at most so many at the longer side; 0: none (default: as the image)",
    )
    add("--heatmap_format", choices=["png", "jpg"], default="png", help="(default: png)")
    add("--maps", choices=["npy", "png16"], help="write anomaly maps, as float32 or on 16 bits")
    add("--masks", action="store_true", help="write which pixels are anomalous")
    add("--batch_size", type=batch_size, default=16, help="images scored at a time (default: 16)")
    add("--threshold", type=number, help="of the image score (default: the checkpoint's)")
    add("--teacher_weights", help="where they are, if not where they were in training")
    add_applied(parser)
    return parser.parse_intermixed_args(argv)


def _outputs(flags: argparse.Namespace, predictor: Predictor) -> Outputs:
    """What the flags ask for. Raises UserError for masks without a threshold."""
    calibration, config = predictor.calibration, predictor.config
    if flags.threshold is not None:
        is_maximum = config.image_score == "max"
        calibration = with_threshold(calibration, flags.threshold, is_maximum)
    if flags.masks and calibration.pixel_threshold is None:
        raise UserError(
            "--masks needs a threshold for pixels, and the training held no images out to set one "
            "with: train with --config.holdout=0.1"
        )
    logger.info("%s", promise(calibration, predictor.categories))
    scales = len(config.scales)  # each of distances up to 2
    limit = 2.0 * scales if config.map_fusion == "sum" else 2.0**scales
    return Outputs(
        flags.output,
        calibration,
        flags.heatmaps,
        flags.heatmap_format,
        flags.maps,
        limit,
        flags.masks,
    )


if __name__ == "__main__":
    read_names_as_utf8()
    sys.exit(main(sys.argv[1:]))
