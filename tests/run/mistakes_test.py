"""A mistake on a command line is one line that says what to do, before the first step."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from rd_jax.method.models.init import teacher_shapes
from rd_jax.weights.convert import torch_name
from tests.command import assert_one_line, evaluation, run, training
from tests.reference_weights import draw_state_dict
from tests.run.conftest import HOLDOUT
from tests.weights.bad_weights_test import Payload

NEITHER = "is neither a file nor a folder, nor a link to one that can be reached: mend or remove it"

IN_TRAINING: dict[str, tuple[list[str], str]] = {
    "no such data": (["--config.data_dir=/no/such"], "data_dir /no/such is not a folder"),
    "home of nobody": (["--config.data_dir=~no_such_user/x"], "data_dir ~no_such_user/x is not a"),
    "no such category": (["--config.category=screw"], "category 'screw' is not in data_dir"),
    "a path as category": (["--config.category=../weave"], "'../weave' is not in data_dir"),
    "no such backbone": (["--config.backbone=resnet19"], "'resnet19': must be one of resnet10"),
    "a size of no strides": (["--config.image_size=100"], "must be a positive multiple of 32"),
    "absent weights": (["--config.teacher_weights=w.npz"], "teacher_weights w.npz is not a file"),
    "no network": (
        ["--config.teacher_weights=imagenet", "--config.backbone=resnet18"],
        "fetch https://huggingface.co/timm/resnet18",
    ),
    "a misspelled field": (["--config.bacbone=resnet18"], "bacbone"),
    "a word for a number": (["--config.num_epochs=many"], "num_epochs"),
    "an odd batch": (["--config.batch_size=6"], "must be a multiple of the 4 devices, such as 8"),
    "32,000 spaces": (["--config.loss=" + 32_000 * " "], "must be one of per_position"),
    "no such mode": (["--mode", "test"], "mode"),
    "no such config": (["--config", "configs/absent.py"], "configs/absent.py"),
    "a name of no config": (
        ["--config", "mvtek"],
        "mvtek: there is no such config; there are demo",
    ),
    "text as config": (["--config", "README.md"], "(README.md, line"),
    "workdir of the kernel": (["--workdir", "/proc/work"], "/proc/work"),
    "a stray word": (["stray"], "unknown argument 'stray'"),
    "nothing to evaluate": (["--mode", "eval"], "no checkpoint in"),
    "authors' checkpoint": (["--config.rd4ad_checkpoint=x.pth"], "add --mode eval"),
}


@pytest.mark.parametrize("row", IN_TRAINING)
def test_a_mistake_is_one_line(data_dir: Path, tmp_path: Path, row: str) -> None:
    arguments, message = IN_TRAINING[row]
    done = run(*training(data_dir, tmp_path / "work", *arguments))
    assert_one_line(done, message)
    assert not (tmp_path / "work" / "weave").exists()


AFTER_TRAINING: dict[str, tuple[list[str], str]] = {
    "another backbone": (["--config.backbone=resnet34"], "was trained with 'tiny'"),
    "another loss": (["--config.loss=flattened"], "was trained with 'per_position'"),
    "another teacher": (
        ["--config.teacher_weights={folder}/w.npz"],
        "was trained with the teacher weights random (sha256 ",
    ),
    "no such category": (["--config.category=screw"], "no checkpoint of screw in "),
    "no such rate": (["--config.false_positive_rate=2"], "must be a number in [0, 1)"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with w.npz, drawn weights of the tiny backbone."""
    folder = tmp_path_factory.mktemp("weights")
    shapes = {
        torch_name(path): leaf.shape[::-1][:2] + leaf.shape[:2] if leaf.ndim == 4 else leaf.shape
        for path, leaf in flatten_dict(teacher_shapes("tiny")).items()
    }
    np.savez(folder / "w.npz", **draw_state_dict(shapes))
    return folder


@pytest.mark.parametrize("row", AFTER_TRAINING)
def test_arguments_that_do_not_fit_the_training_are_one_line(
    trained: Path, weights: Path, row: str
) -> None:
    arguments, message = AFTER_TRAINING[row]
    done = run(*evaluation(trained, *(text.format(folder=weights) for text in arguments)))
    assert_one_line(done, message)


def test_a_training_with_another_config_or_other_images_is_not_gone_on_with(
    data_dir: Path, trained: Path, tmp_path: Path
) -> None:
    done = run(*training(data_dir, trained, *HOLDOUT, "--config.learning_rate=0.1"))
    assert_one_line(done, "another config: learning_rate (0.005, now 0.1)")
    folder = shutil.copytree(data_dir, tmp_path / "data")
    (folder / "weave" / "train" / "good" / "000.png").unlink()
    done = run(*training(folder, trained, *HOLDOUT, "--config.category=weave"))
    assert_one_line(done, "was trained with other training images")


IN_THE_DATA: dict[str, tuple[Callable[[Path], Any], list[str], str]] = {
    "no images": (
        lambda root: [path.unlink() for path in (root / "train/good").iterdir()],
        [],
        "train/good holds no images",
    ),
    "a missing mask": (
        lambda root: (root / "ground_truth/stain/001_mask.png").unlink(),
        [],
        "ground_truth/stain/001_mask.png of test image",
    ),
    "a cut image": (
        lambda root: (root / "test/good/001.png").write_bytes(b"\x89PNG\r\n"),
        [],
        "1 of 10 files cannot be read: ",
    ),
    "a name of bytes": (
        lambda root: (root / "train/good" / os.fsdecode(b"caf\xe9.png")).symlink_to("/no/such"),
        [],
        f"caf\\udce9.png {NEITHER}",
    ),
    "a shared mask": (
        lambda root: Image.new("L", (64, 64)).save(root / "test/stain/000.jpg"),
        [],
        "share ",
    ),
    "code as weights": (
        lambda root: (root.parent / "w.npz").write_bytes(pickle.dumps(Payload(root / "run"))),
        ["--config.teacher_weights={data_dir}/w.npz"],
        "w.npz is not a readable npz file (",
    ),
}


@pytest.mark.parametrize("row", IN_THE_DATA)
def test_a_problem_in_the_data_is_one_line(data_dir: Path, tmp_path: Path, row: str) -> None:
    change, more, message = IN_THE_DATA[row]
    folder = shutil.copytree(data_dir, tmp_path / "data")
    change(folder / "weave")
    arguments = [argument.format(data_dir=folder) for argument in more]
    one = "--config.category=weave"
    done = run(*training(folder, tmp_path / "work", *HOLDOUT, one, *arguments))
    assert_one_line(done, message)
    assert not (folder / "weave" / "run").exists()
    assert not (tmp_path / "work" / "weave").exists()
