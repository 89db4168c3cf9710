"""Writes a trained scorer as one file that runs without rd_jax.

python -m rd_jax.export --workdir DIR[/CATEGORY] --output FILE.{stablehlo,onnx}
    [--teacher_weights=FILE] [--false_positive_rate=X] [--threshold=X]

The file takes uint8 RGB images [B, H, W, 3], any number B of the size trained with. It returns
map [B, H, W] and score [B] (float32). If training held images out, so that there is a threshold,
it also returns anomalous [B] (bool). jax.export.deserialize reads FILE.stablehlo, on CPU, GPU and
TPU; ONNX Runtime reads FILE.onnx. The way to resize images, the thresholds and the categories are
in FILE.stablehlo.json, or in the ONNX model's metadata.
"""

import dataclasses
import json
import logging
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rd_jax.export.onnx import to_onnx, with_metadata
from rd_jax.export.stablehlo import to_stablehlo
from rd_jax.method.thresholds import with_threshold
from rd_jax.report.words import rate_in_words
from rd_jax.run.trained import Trained, load_trained
from rd_jax.system.command import Parser, require_devices, run_command
from rd_jax.system.errors import UserError
from rd_jax.system.files import check_writable, user_path, writing

logger = logging.getLogger("rd_jax.export")  # with python -m, __name__ is no part of the package

FORMATS = {".stablehlo": to_stablehlo, ".onnx": to_onnx}
_OF_THRESHOLDS = ("image_threshold", "pixel_threshold", "map_low", "map_high", "kept_rate")


def main(argv: Sequence[str]) -> int:
    """Parse the flags, export, print inputs and outputs of the file; return the exit code."""

    def body() -> int:
        parser = Parser("python -m rd_jax.export", __doc__)
        add = parser.add_argument
        add("--workdir", required=True, type=user_path, help="of a training: see rd_jax.main")
        add("--output", required=True, type=user_path, help="the file to write")
        add("--teacher_weights", help="where they are, if not where they were in training")
        asked = "share of new normal images above the threshold (default: as in training)"
        add("--false_positive_rate", type=float, help=asked)
        add("--threshold", type=float, help="of the image score (default: the checkpoint's)")
        flags = parser.parse_args(argv)
        _check(flags.output)
        require_devices()
        rate = flags.false_positive_rate
        rates = {} if rate is None else {"false_positive_rate": rate}
        trained = load_trained(flags.workdir, flags.teacher_weights, **rates)
        if flags.threshold is not None:
            trained = _by(trained, flags.threshold)
        print(export(trained, flags.output))
        return 0

    return run_command(body, lambda _: "interrupted: nothing was written")


def _by(trained: Trained, threshold: float) -> Trained:
    """Return the trained model with the user's threshold of the image score."""
    if not math.isfinite(threshold):
        raise UserError(f"--threshold={threshold}: must be a finite number")
    if trained.thresholds is None:
        raise UserError(
            f"--threshold: {trained.training.folder} is not evaluated: let its training end"
        )
    is_maximum = trained.scoring.reduction == "max"
    thresholds = with_threshold(trained.thresholds, threshold, is_maximum)
    return dataclasses.replace(trained, thresholds=thresholds)


def export(trained: Trained, output: Path) -> str:
    """Write the trained model to `output`, in the format of its suffix; return a description.

    Raise UserError if the training is finished but not evaluated, or if `output` cannot be written.
    """
    thresholds = trained.thresholds
    if thresholds is None and trained.checkpoint.is_finished:
        raise UserError(
            f"{trained.training.folder} has no thresholds: run python -m rd_jax.main --mode eval, "
            "which scores normal images"
        )
    if thresholds is None:
        steps = trained.checkpoint.step, trained.checkpoint.last_step
        logger.warning("UNFINISHED training: the export is of step %d of %d", *steps)
    threshold = thresholds and thresholds.image_threshold
    known = _known(trained)
    content = FORMATS[output.suffix](
        trained.model,
        trained.teacher.variables,
        trained.checkpoint.student_variables,
        size=trained.size,
        scoring=trained.scoring,
        threshold=threshold,
    )
    if output.suffix == ".onnx":
        _write_together({output: with_metadata(content, known)})
    else:
        facts = json.dumps(known, indent=2, allow_nan=False) + "\n"
        _write_together({output.with_name(f"{output.name}.json"): facts.encode(), output: content})
    verdict = rate_in_words(thresholds, trained.categories)
    verdict = verdict if threshold is None else f"anomalous [B] ({verdict})"
    size = "{}, {}".format(*trained.size)
    return f"{output}: images uint8 [B, {size}, 3] -> map [B, {size}], score [B], {verdict}"


def _check(output: Path) -> None:
    """Raise UserError if `output` cannot be written."""
    if output.suffix not in FORMATS:
        raise UserError(f"--output {output}: its suffix must be one of {', '.join(FORMATS)}")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}; make it first")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file")
    check_writable(output.parent)


def _known(trained: Trained) -> dict[str, Any]:
    """Return the facts that a user of the file needs, as JSON-compatible values."""
    height, width = trained.size
    return {
        "categories": list(trained.categories),
        "height": height,
        "width": width,
        "resize": trained.config.resize,
        "image_score": trained.scoring.reduction,
        **{name: getattr(trained.thresholds, name, None) for name in _OF_THRESHOLDS},
    }


def _write_together(files: Mapping[Path, bytes]) -> None:
    """Write all of these files into their folder, or none. Old files stay until all are written."""
    folder = next(iter(files)).parent
    with writing(folder), tempfile.TemporaryDirectory(prefix=".rd_jax-", dir=folder) as new:
        for path, content in files.items():
            Path(new, path.name).write_bytes(content)
        for path in files:
            os.replace(Path(new, path.name), path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
