"""Detect novelties: each class of a data set in turn is normal, and all others are anomalous.

python -m rd_jax.main --config one_class:DATASET --workdir runs/DATASET

DATASET is digits (of scikit-learn, nothing to download), mnist, fashion_mnist, cifar10 or another
image classification set of TFDS. Other fields depend on it, so name it behind the colon and not by
--config.dataset. --config.normal_class=K takes one class only.
"""

from rd_jax.config import Config
from rd_jax.config import get_config as defaults

# For grey sets the authors' code scales pixels to [0, 1], without ImageNet's mean.
_GREY = ("digits", "mnist", "fashion_mnist", "kmnist", "emnist")


def get_config(dataset: str = "digits") -> Config:
    """Return the choices of the authors' code. The small set digits takes more epochs."""
    if not dataset:
        raise ValueError("--config one_class:DATASET needs a data set, such as digits")
    return defaults(
        data_dir="~/tensorflow_datasets",
        dataset=dataset,
        image_size=32,
        backbone="resnet18",
        normalize=dataset.split("/")[0] not in _GREY,
        num_epochs=20 if dataset == "digits" else 10,
        image_score="sum",
        log_every_steps=50,
        checkpoint_every_epochs=0,
    )
