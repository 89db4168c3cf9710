"""Writes the files that the server of MVTec AD 2 evaluates, from trained categories.

python examples/mvtec_ad2_submission.py --workdir runs/ad2 --data_dir data/mvtec_ad_2 \
    --output submission

For each image of DATA_DIR/OBJECT/test_private and test_private_mixed, of the image's size:

submission/anomaly_images/OBJECT/SPLIT/NAME.tiff               the anomaly map, 16-bit float
submission/anomaly_images_thresholded/OBJECT/SPLIT/NAME.png    255: anomalous, 0: normal

Each object needs a training with held-out images in WORKDIR/OBJECT. The data set's own
check_and_prepare_data_for_upload.py checks the folder and packs it.
"""

import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rd_jax.data.decode import png
from rd_jax.data.folders import images_named
from rd_jax.predict.predictor import Predictor, Unreadable, load_predictor, score_files
from rd_jax.report.heatmap import resized_map
from rd_jax.system.command import Parser, require_devices, run_command
from rd_jax.system.errors import UserError
from rd_jax.system.files import check_writable, user_path, write_whole

SPLITS = ("test_private", "test_private_mixed")
_SHORT, _LONG = (3, "H"), (4, "I")  # TIFF's number of a type, and struct's letter


def tiff_of(anomaly_map: np.ndarray) -> bytes:
    """Return the TIFF file of a map [h, w] in 16-bit floats, which Pillow cannot write."""
    height, width = anomaly_map.shape
    pixels = anomaly_map.astype("<f2").tobytes()
    fields = [
        *((256, _LONG, width), (257, _LONG, height)),
        *((258, _SHORT, 16), (259, _SHORT, 1), (262, _SHORT, 1)),  # bits; as they are; 0 is black
        *((273, _LONG, 8), (277, _SHORT, 1)),  # where pixels begin; how many values they have
        *((278, _LONG, height), (279, _LONG, len(pixels))),  # all rows are one strip
        (339, _SHORT, 3),  # floats
    ]
    entries = (
        struct.pack("<HHI", tag, number, 1) + struct.pack(f"<{letter}", value).ljust(4, b"\0")
        for tag, (number, letter), value in fields
    )
    begin = struct.pack("<2sHI", b"II", 42, 8 + len(pixels))
    return begin + pixels + struct.pack("<H", len(fields)) + b"".join(entries) + bytes(4)


def objects_of(data_dir: Path) -> list[str]:
    """Return the objects that have private test images. Raise UserError if there is none."""
    found = sorted(
        {folder.parent.name for split in SPLITS for folder in data_dir.glob(f"*/{split}")}
    )
    if not found:
        raise UserError(
            f"--data_dir {data_dir} holds no OBJECT/{SPLITS[0]}: give the folder of MVTec AD 2"
        )
    return found


def files_of(predictor: Predictor, folder: Path) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield name, map as TIFF and mask as PNG of each image in a folder.

    An image below the threshold has no anomalous pixel. Raise UserError for an image that cannot be
    read.
    """
    pixel_threshold = predictor.thresholds.pixel_threshold
    for result in score_files(predictor, images_named(folder)):
        if isinstance(result, Unreadable):
            raise UserError(f"{result.path} cannot be read ({result.reason}): unpack it again")
        values = resized_map(result.anomaly_map, result.size)
        mask = (values > pixel_threshold) & bool(result.is_anomalous)
        yield result.path.stem, tiff_of(values), png(np.uint8(255) * mask)


def main(argv: Sequence[str]) -> int:
    """Parse the flags and write the files; return the exit code."""

    def body() -> int:
        parser = Parser("python examples/mvtec_ad2_submission.py", __doc__)
        add = parser.add_argument
        add("--workdir", required=True, type=user_path, help="of a run: see rd_jax.main")
        add("--data_dir", required=True, type=user_path, help="MVTec AD 2, as it is unpacked")
        add("--output", required=True, type=user_path, help="the folder to be packed")
        flags = parser.parse_args(argv)
        require_devices()
        check_writable(flags.output)
        for name in objects_of(flags.data_dir):
            predictor = load_predictor(flags.workdir / name)
            if predictor.thresholds.pixel_threshold is None:
                raise UserError(f"{name} has no threshold: train it with --config.holdout=0.1")
            for split in SPLITS:
                count = 0
                for stem, tiff, mask in files_of(predictor, flags.data_dir / name / split):
                    place = Path(name, split, stem)
                    write_whole(flags.output / "anomaly_images" / f"{place}.tiff", tiff)
                    write_whole(flags.output / "anomaly_images_thresholded" / f"{place}.png", mask)
                    count += 1
                print(f"{name}/{split}: {count} images", flush=True)
        return 0

    return run_command(body, lambda _: "interrupted: the folder is not complete")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
