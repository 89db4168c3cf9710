"""Writes a trained scorer as one file that runs without rd_jax.

python -m rd_jax.export --workdir DIR[/CATEGORY] --output FILE.{stablehlo,onnx}
    [--teacher_weights=FILE] [--false_positive_rate=X] [--blur_sigma=X] [--map_fusion=sum|product]
    [--image_score=max|sum]

The file takes uint8 RGB images [B, H, W, 3], any number B of the size trained with, and gives
map [B, H, W] and score [B] (float32) and, if the training held images out to set a threshold
with, anomalous [B] (bool). FILE.stablehlo is read by jax.export.deserialize, on CPU, GPU and TPU;
FILE.onnx by ONNX Runtime. How images are resized for it, thresholds and categories stand in
FILE.stablehlo.json, and in the ONNX model's metadata.
"""

import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rd_jax.config import size_of
from rd_jax.export.onnx_graph import to_onnx
from rd_jax.export.stablehlo import to_stablehlo
from rd_jax.method.calibration import Calibration
from rd_jax.report.promise import NO_THRESHOLD, promise
from rd_jax.run.build import model_of, scoring_of
from rd_jax.run.trained import APPLIED, Trained, add_applied, applied, load_trained
from rd_jax.store.rows import write_json
from rd_jax.system.console import Parser, log_to_stderr, path
from rd_jax.system.environment import read_names_as_utf8, require_devices, settle
from rd_jax.system.errors import EXPECTED, UserError, explained
from rd_jax.system.files import check_writable, write_whole

logger = logging.getLogger(__name__)

OF_SCORES = [name for name in APPLIED if name != "pixel_false_positive_rate"]  # no masks
FORMATS: dict[str, Callable[..., bytes]] = {".stablehlo": to_stablehlo, ".onnx": to_onnx}
_WITH_METADATA = (".onnx",)  # what is known besides is kept beside files of other formats


def main(argv: Sequence[str]) -> int:
    """Parses the flags, exports, says what the file takes and gives; returns the exit code."""
    log_to_stderr()
    try:
        settle()
        parser = Parser("python -m rd_jax.export", __doc__)
        add = parser.add_argument
        add("--workdir", required=True, type=path, help="of a training: see rd_jax.main")
        add("--output", required=True, type=path, help="the file to write")
        add("--teacher_weights", help="where they are, if not where they were in training")
        add_applied(parser, OF_SCORES)
        flags = parser.parse_args(argv)
        require_devices()
        print(export(flags.workdir, flags.output, flags.teacher_weights, **applied(flags)))
    except EXPECTED as error:
        print(f"error: {explained(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


def export(training: Path, output: Path, teacher_weights: str | None = None, **changes: Any) -> str:
    """Writes what the one training in this folder learnt to `output`; returns a description.

    The suffix of `output` says how. `teacher_weights` and `changes` are as of `load_predictor`.
    Raises UserError if there is no checkpoint, if the training is finished but not evaluated, if
    the teacher is not the one trained with, or if `output` cannot be written.
    """
    if output.suffix not in FORMATS:
        raise UserError(f"--output {output}: its suffix must be one of {', '.join(FORMATS)}")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}; make it first")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file")
    check_writable(output.parent)
    trained = load_trained(training, teacher_weights, **changes)
    verdict, calibration, size = NO_THRESHOLD, None, size_of(trained.config)
    if trained.is_finished and trained.config.holdout:
        calibration = trained.calibration("float32")
        says = promise(calibration, trained.categories)
        verdict = f"anomalous [B] ({says})"
    elif not trained.is_finished:
        step, last_step = trained.checkpoint.step, trained.checkpoint.metadata["last_step"]
        logger.warning("UNFINISHED training: exported is step %d of %d", step, last_step)
    variables = trained.teacher.variables, trained.checkpoint.student_variables
    options: dict[str, Any] = dict(size=size, resize=trained.config.resize)
    options |= scoring_of(trained.config)
    options["threshold"] = calibration and calibration.image_threshold
    known = what_is_known(trained, calibration)
    if output.suffix in _WITH_METADATA:
        options["known"] = {name: json.dumps(value) for name, value in known.items()}
    else:
        write_json(output.with_name(f"{output.name}.json"), known)
    to_file = FORMATS[output.suffix]
    write_whole(output, to_file(model_of(trained.config), *variables, **options))
    height, width = size
    images, maps = f"uint8 [B, {height}, {width}, 3]", f"[B, {height}, {width}]"
    return f"{output}: images {images} -> map {maps}, score [B], {verdict}"


def what_is_known(trained: Trained, calibration: Calibration | None) -> dict[str, Any]:
    """What whoever uses an exported file has to know, as JSON-compatible values."""
    height, width = size_of(trained.config)
    of_thresholds = ("image_threshold", "pixel_threshold", "map_low", "map_high", "kept_rate")
    return {
        "categories": list(trained.categories) or [trained.training.category],
        "height": height,
        "width": width,
        "resize": trained.config.resize,
        "image_score": trained.config.image_score,
        **{name: calibration and getattr(calibration, name) for name in of_thresholds},
    }


if __name__ == "__main__":
    read_names_as_utf8()
    sys.exit(main(sys.argv[1:]))
