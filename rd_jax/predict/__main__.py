"""Scores image files with a trained checkpoint.

python -m rd_jax.predict --workdir DIR[/CATEGORY] IMAGES_OR_FOLDERS... --output OUT
    [--heatmaps=PIXELS] [--heatmap_format=png|jpg] [--maps=npy|png16] [--masks]
    [--batch_size=N] [--threshold=X] [--teacher_weights=FILE]
    [--false_positive_rate=X] [--pixel_false_positive_rate=X]
python -m rd_jax.predict --workdir DIR[/CATEGORY] --watch FOLDER --output OUT [...]

OUT/index.html shows the heatmaps, highest scores first. OUT/predictions.csv and predictions.jsonl
get a row for each image: file, score, threshold, verdict, and where in OUT its heatmap, map and
mask are. These are named after the image: x/1.jpg in the folder that you give becomes
heatmaps/x/1_heatmap.png. If you give several folders, names begin below the folder that holds them
all. The outputs of an earlier run in OUT are removed. The exit code is 0 if all images were scored
and written, 1 if some were not (their rows say why), and 2 for a mistake.

With --watch, images are scored as they arrive in FOLDER. Ctrl-C or SIGTERM ends that with exit
code 0. Rows are appended to those in OUT, and nothing is removed. Images that have rows already are
not scored again.
"""

import argparse
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from rd_jax.config import FIELDS, RATES
from rd_jax.method.thresholds import with_threshold
from rd_jax.predict.inputs import find_inputs
from rd_jax.predict.outputs import Outputs, check_output, write_images
from rd_jax.predict.predictor import Predictor, load_predictor, score_files
from rd_jax.predict.tables import begun
from rd_jax.predict.watch import watch
from rd_jax.report.words import caution, rate_in_words
from rd_jax.store.rows import Row
from rd_jax.system.command import Parser, num_processors, require_devices, run_command
from rd_jax.system.errors import UserError, printable
from rd_jax.system.files import user_path
from rd_jax.system.interruption import deferred

logger = logging.getLogger("rd_jax.predict")  # with python -m, __name__ is no part of the package

_TOO_MANY = 'see "Too many false alarms" in docs/own_parts.md'
_LOG_EVERY = 100  # images, where there is no terminal
_PAUSE = 1.0  # seconds between two looks into a watched folder


def main(argv: Sequence[str]) -> int:
    """Parse the flags, score, print a summary; return the exit code."""
    counts: Counter[str] = Counter()

    def body() -> int:
        flags = _parse(argv)
        check_output(flags.output)
        inputs = {} if flags.watch else find_inputs(flags.images, flags.output)
        counts["images"] = len(inputs)
        require_devices()
        rates = {name: x for name in RATES if (x := getattr(flags, name)) is not None}
        predictor = load_predictor(flags.workdir, flags.teacher_weights, **rates)
        if flags.threshold is not None:
            is_maximum = predictor.scoring.reduction == "max"
            thresholds = with_threshold(predictor.thresholds, flags.threshold, is_maximum)
            predictor = predictor._replace(thresholds=thresholds)
        outputs = _outputs(flags, predictor)
        if flags.watch:
            logger.info("watching %s", printable(str(flags.watch)))
            _attend(watch(predictor, flags.watch, outputs, flags.batch_size), counts)
            print(f"ended: {_summary(counts)}")
            return 0
        _follow(predict(predictor, inputs, outputs, flags.batch_size), counts)
        folder = printable(str(flags.output))
        if counts["anomalous"] > counts["scored"] / 2 and counts["scored"] >= 20:
            logger.warning("most images are called anomalous: if they are good, %s", _TOO_MANY)
        print(f"{_summary(counts)}. Open {folder}/index.html (pictures) or predictions.csv (rows)")
        return 1 if counts["failed"] else 0

    return run_command(body, lambda _: f"interrupted: {_summary(counts)}")


def predict(
    predictor: Predictor, inputs: Mapping[Path, str], outputs: Outputs, batch_size: int
) -> Iterator[Row]:
    """Score images and write the outputs; yield each row when it is on disk, in order.

    `inputs` maps each path to the name of its outputs. All rows of a batch are on disk before the
    next batch is scored. Raise UserError if a score is not finite or something cannot be written.
    """
    scored = score_files(predictor, inputs, batch_size, hold_images=outputs.take_images)
    results = zip(scored, inputs.values(), strict=True)
    with begun(outputs, inputs.values()) as tables, ThreadPoolExecutor(num_processors()) as pool:
        while batch := list(islice(results, batch_size)):
            for row in pool.map(partial(write_images, outputs), *zip(*batch, strict=True)):
                tables.append(row)
                yield row


def _follow(rows: Iterator[Row], counts: Counter[str]) -> None:
    """Count the rows and show progress: a bar on a terminal, log lines elsewhere."""
    total, on_terminal = counts["images"], sys.stderr.isatty()
    bar = tqdm(rows, total=total, unit="image", disable=not on_terminal)
    for num_done, row in enumerate(bar, 1):
        _count(row, counts)
        if num_done % _LOG_EVERY == 0 and not on_terminal:
            logger.info("%d of %d images", num_done, total)


def _count(row: Row, counts: Counter[str]) -> None:
    """Count a row; print its error."""
    if row["error"]:
        tqdm.write(printable(f"failed: {row['file']}: {row['error']}"), file=sys.stderr)
    counts["failed"] += bool(row["error"])
    counts["scored"] += row["score"] is not None
    counts["anomalous"] += row["verdict"] == "anomalous"


def _attend(arriving: Generator[list[Row]], counts: Counter[str]) -> None:
    """Log the rows of arriving images and look again after a pause, until a signal."""
    with deferred("ending after this batch") as should_stop, closing(arriving):
        for rows in arriving:
            for row in rows:
                counts["images"] += 1
                _count(row, counts)
                if row["score"] is not None:
                    verdict = row["verdict"] or ""
                    logger.info("%s: %.4g %s", printable(row["file"]), row["score"], verdict)
            if should_stop():
                return
            if not rows:
                time.sleep(_PAUSE)


def _summary(counts: Counter[str]) -> str:
    text = f"{counts['scored']} of {counts['images']} images scored"
    if counts["anomalous"]:
        text += f", {counts['anomalous']} of them anomalous"
    return text + (f"; {counts['failed']} could not be read or written" if counts["failed"] else "")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("python -m rd_jax.predict", __doc__)
    add = parser.add_argument
    add("images", nargs="*", type=Path, help="image files, or folders that are searched for them")
    add("--watch", type=user_path, metavar="FOLDER", help="score what arrives in it, until Ctrl-C")
    add("--workdir", required=True, type=user_path, help="of a training: see rd_jax.main")
    add("--output", required=True, type=user_path, help="the folder to write to")
    help_ = "longer side of a heatmap; 0: no heatmaps (default: as the image)"
    add("--heatmaps", type=int, default=sys.maxsize, metavar="PIXELS", help=help_)
    add("--heatmap_format", choices=["png", "jpg"], default="png", help="(default: png)")
    add("--maps", choices=["npy", "png16"], help="write anomaly maps, as float32 or 16 bits")
    add("--masks", action="store_true", help="write masks of anomalous pixels")
    add("--batch_size", type=int, default=16, help="images scored at a time (default: 16)")
    add("--threshold", type=float, help="of the image score (default: the checkpoint's)")
    add("--teacher_weights", help="where they are, if not where they were in training")
    for name in RATES:
        add(f"--{name}", type=float, help=f"{FIELDS[name].help} (default: as in training)")
    flags = parser.parse_intermixed_args(argv)
    if bool(flags.images) == bool(flags.watch):
        parser.error("give images, or a folder to --watch")
    if flags.watch and not flags.watch.is_dir():
        raise UserError(f"--watch {flags.watch}: there is no such folder")
    for name, is_wrong, must in (
        ("batch_size", flags.batch_size < 1, "at least 1"),
        ("heatmaps", flags.heatmaps < 0, "at least 0"),
        ("threshold", not math.isfinite(flags.threshold or 0), "a finite number"),
    ):
        if is_wrong:
            raise UserError(f"--{name}={getattr(flags, name)}: must be {must}")
    return flags


def _outputs(flags: argparse.Namespace, predictor: Predictor) -> Outputs:
    """Return the outputs that the flags ask for. Raise UserError for masks without threshold."""
    thresholds = predictor.thresholds
    if flags.masks and thresholds.pixel_threshold is None:
        raise UserError(
            "--masks needs a threshold for pixels, and training held no images out to set one: "
            "train with --config.holdout=0.1"
        )
    logger.info("%s", rate_in_words(thresholds, predictor.categories))
    if few := caution(thresholds):
        logger.warning("%s", few)
    shown, fusion = (flags.heatmaps, flags.heatmap_format), predictor.scoring.fusion
    return Outputs(flags.output, thresholds, *shown, flags.maps, fusion, flags.masks)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
