"""Sets the thresholds of a training from more good images, without training.

python -m rd_jax.calibrate --workdir DIR[/CATEGORY] IMAGES_OR_FOLDERS... [--replace]
    [--teacher_weights=FILE]
python -m rd_jax.calibrate --workdir DIR[/CATEGORY] --undo

Give good images that the training did not see, taken like the images to be judged. Their scores
join those of the images held out in training. Predictions, exports, the report and load_predictor
use the new thresholds at once. Files that were exported before keep the old thresholds.
"""

import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from rd_jax.data.folders import images_named
from rd_jax.report.words import caution, rate_in_words
from rd_jax.run.calibration import add_normal_images, undo
from rd_jax.run.trained import load_trained
from rd_jax.system.command import Parser, require_devices, run_command
from rd_jax.system.errors import UserError
from rd_jax.system.files import user_path

logger = logging.getLogger("rd_jax.calibrate")  # with python -m, __name__ is no part of the package

_HIGHER = "it calls fewer good images anomalous, and perhaps fewer defects: predict known ones"


def main(argv: Sequence[str]) -> int:
    """Parse the flags, set the thresholds, print them; return the exit code."""

    def body() -> int:
        parser = Parser("python -m rd_jax.calibrate", __doc__)
        add = parser.add_argument
        add("images", nargs="*", type=Path, help="good images, or folders that are searched")
        add("--workdir", required=True, type=user_path, help="of a training: see rd_jax.main")
        add("--replace", action="store_true", help="drop the images held out in training")
        add("--undo", action="store_true", help="go back to the earlier thresholds")
        add("--teacher_weights", help="where they are, if not where they were in training")
        flags = parser.parse_intermixed_args(argv)
        if flags.undo == bool(flags.images):
            raise UserError("give good images, or --undo without images (see --help)")
        require_devices()
        trained = load_trained(flags.workdir, flags.teacher_weights)
        before = trained.thresholds
        if flags.undo:
            after = undo(trained)
        else:
            paths = [path for argument in flags.images for path in images_named(argument)]
            after = add_normal_images(trained, paths, flags.replace)
        if before is not None:
            logger.info("before: %s", rate_in_words(before))
            if (after.image_threshold or 0) > (before.image_threshold or math.inf):
                logger.warning("the threshold is higher: %s", _HIGHER)
        if few := caution(after):
            logger.warning("%s", few)
        print(f"{rate_in_words(after)}. Predictions, exports and the report use it from now on.")
        return 0

    return run_command(body, lambda _: "interrupted: the thresholds are as they were")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
