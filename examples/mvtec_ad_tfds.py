"""Build MVTec AD for TFDS. Importing this module registers it with `tfds.data_source`.

import examples.mvtec_ad_tfds
tfds.data_source("mvtec_ad/bottle", split="test")
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from rd_jax.data import NORMAL, Row, Source
from rd_jax.data.cache import each_file
from rd_jax.data.decode import png, read_image, warn_of
from rd_jax.data.masks import read_mask
from rd_jax.data.rows import name_of
from rd_jax.data.sources import find_categories
from rd_jax.system.errors import UserError, printable

CATEGORIES = (
    *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut"),
    *("pill", "screw", "tile", "toothbrush", "transistor", "wood", "zipper"),
)


class MvtecAd(tfds.core.GeneratorBasedBuilder):
    """MVTec AD (Bergmann et al., CVPR 2019), one config per category.

    Examples have `image` uint8 [H, W, 3], `mask` uint8 [H, W, 1] (255: anomalous; all 0 for
    normal images), `label` (0: normal, 1: anomalous), `defect` (its type, "good" if none) and
    `name` (of the file, in its split). Preparing and reading need no TensorFlow.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=name) for name in CATEGORIES)
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Download MVTec AD from https://www.mvtec.com/company/research/datasets/mvtec-ad and "
        "unpack it so that the manual folder holds bottle/, cable/, ..."
    )

    def __init__(self, *, file_format: Any = None, **keywords: Any):
        # TFDS's default format needs TensorFlow for writing and reading.
        super().__init__(file_format=file_format or "array_record", **keywords)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=["normal", "anomalous"]),
                    "defect": tfds.features.Text(),
                    "name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://www.mvtec.com/company/research/datasets/mvtec-ad",
            license="CC BY-NC-SA 4.0",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        source = Source(str(dl_manager.manual_dir), "", (1, 1), "stretch")
        [category] = find_categories(source, self.builder_config.name)
        for row in category.rows:
            if row.label != NORMAL and not row.masks:
                raise UserError(f"{row.image} has no mask: its category has no ground_truth folder")
        return {
            split: self._generate_examples([row for row in category.rows if row.split == split])
            for split in ("train", "test")
        }

    def _generate_examples(self, rows: Sequence[Row]) -> Iterator[tuple[str, dict[str, Any]]]:
        remarks, of_masks = dict[Path, int](), dict[Path, int]()
        for row in rows:
            [pixels] = each_file(read_image, [row.image])
            remarks[row.image] = pixels.info["remark"]
            mask = Image.new("L", pixels.size)
            if row.masks:
                first, *others = row.masks
                [mask] = each_file(read_mask, [first], [row.image], *([other] for other in others))
                of_masks[first] = mask.info["remark"]
            example = {
                "image": _file_of(pixels),
                "mask": _file_of(mask.point(lambda v: 255 if v > 127 else 0)),
                "label": int(row.label != NORMAL),
                "defect": printable(row.label),
                "name": name_of(row),
            }
            yield name_of(row), example
        warn_of(remarks, len(remarks))
        warn_of(of_masks, len(of_masks))


def _file_of(image: Image.Image) -> io.BytesIO:
    """Return a file of these pixels only: decoders may treat other contents differently."""
    return io.BytesIO(png(np.asarray(image)))
