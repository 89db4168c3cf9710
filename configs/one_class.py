"""One-class novelty detection: each class of a data set in turn is normal, the others anomalous.

python -m rd_jax.main --config configs/one_class.py:DATASET --workdir runs/DATASET

DATASET is digits (of scikit-learn, nothing to download), mnist, fashion_mnist, cifar10 or another
image classification set of TFDS; other fields depend on it, so name it behind the colon and not by
--config.dataset. --config.normal_class=K takes one class alone.
"""

from ml_collections import ConfigDict

# Of grey sets the authors' code scales pixels to [0, 1] and leaves ImageNet's mean out.
_GREY = ("digits", "mnist", "fashion_mnist", "kmnist", "emnist")


def get_config(dataset: str = "digits") -> ConfigDict:
    """The choices of the authors' code; digits, a small set, takes more epochs."""
    if not dataset:
        raise ValueError("configs/one_class.py:DATASET needs a data set, such as digits")
    return ConfigDict(
        dict(
            data_dir="~/tensorflow_datasets",
            category="",
            dataset=dataset,
            normal_class=-1,
            image_size=32,
            backbone="resnet18",
            teacher_weights="imagenet",
            normalize=dataset.split("/")[0] not in _GREY,
            bottleneck="mff_oce",
            scales=(1, 2, 3),
            loss="per_position",
            batch_size=16,
            num_epochs=30 if dataset == "digits" else 10,
            learning_rate=0.005,
            adam_b1=0.5,
            adam_b2=0.999,
            seed=0,
            seeds=(),
            holdout=0.0,
            false_positive_rate=0.01,
            rd4ad_checkpoint="",
            dtype="auto",
            blur_sigma=4.0,
            image_score="sum",
            log_every_steps=50,
            eval_every_epochs=0,
            checkpoint_every_epochs=0,
            tensorboard=False,
        )
    )
