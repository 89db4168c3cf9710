"""Fetches the ImageNet weights of a teacher, to take to a machine without a network.

python -m rd_jax.weights BACKBONE --output FOLDER

writes FOLDER/BACKBONE.safetensors. Train there with --config.teacher_weights=PATH of that file.
"""

import sys
from collections.abc import Sequence

from rd_jax.system.command import Parser, run_command
from rd_jax.system.files import user_path, write_whole
from rd_jax.weights.hub import IMAGENET, download


def main(argv: Sequence[str]) -> int:
    """Parse the flags, fetch, say how to use the file; return the exit code."""

    def body() -> int:
        parser = Parser("python -m rd_jax.weights", __doc__)
        parser.add_argument("backbone", choices=list(IMAGENET), help="fetch the weights of this")
        parser.add_argument(
            "--output", required=True, type=user_path, help="the folder to write to"
        )
        flags = parser.parse_args(argv)
        path = flags.output / f"{flags.backbone}.safetensors"
        write_whole(path, download(flags.backbone).read_bytes())
        print(
            f"{path}: train with --config.backbone={flags.backbone} --config.teacher_weights={path}"
        )
        return 0

    return run_command(body, lambda _: "interrupted: nothing was written")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
