"""Turn a config into its source, networks, optimiser, scoring and trainings."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rd_jax.config import Config
from rd_jax.data import Category, Split
from rd_jax.data.copies import first_alike, groups_of
from rd_jax.data.order import holdout_indices, steps_until
from rd_jax.data.sources import Source
from rd_jax.method.loss import LOSSES, LossFunction
from rd_jax.method.models import Model
from rd_jax.method.score import Scoring, height_and_width
from rd_jax.store.workdir import JOINT, Evaluation, Training, Workdir
from rd_jax.system.errors import UserError
from rd_jax.weights.teacher import LoadedTeacher, find_teacher


def source_of(config: Config) -> Source:
    """Return the source of images and their size."""
    return Source(config.data_dir, config.dataset, size_of(config), config.resize)


def chosen_name(config: Config) -> str:
    """Return the class, or the categories with commas, that the config names; "" for all."""
    if config.dataset:
        return "" if config.normal_class < 0 else str(config.normal_class)
    return config.category


def size_of(config: Config) -> tuple[int, int]:
    """Return height and width of images in pixels."""
    return height_and_width(config.image_size)


def compute_dtype(config: Config) -> jnp.dtype:
    """Return the dtype that training computes in; "auto" is float32 on CPU, else bfloat16."""
    auto = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(auto if config.dtype == "auto" else config.dtype)


def model_of(config: Config) -> Model:
    """Return the networks in float32, so that scores are the same on every device."""
    return Model(
        backbone=config.backbone,
        bottleneck=config.bottleneck,
        scales=tuple(config.scales),
        normalize=config.normalize,
        direction=config.direction,
    )


def trained_model_of(config: Config) -> Model:
    """Return the networks in the dtype of training."""
    return replace(model_of(config), dtype=compute_dtype(config))


def teacher_of(config: Config) -> LoadedTeacher:
    """Load the teacher, with the stages that the bottleneck needs."""
    return find_teacher(config.backbone, config.teacher_weights, config.bottleneck == "pre")


def held_out_of(config: Config, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return which training images are trained on, and which are held out, in whole groups.

    If there are images for validation, they are held out; else the seed chooses. Of equal
    held-out images, only one is returned.
    """
    hashes = split.train_hashes
    if split.num_validation:
        first = len(hashes) - split.num_validation
        return np.arange(first), first + np.unique(first_alike(hashes[first:]))
    groups = groups_of(split, config.group_by) if config.holdout else np.arange(len(hashes))
    members = np.unique(groups)
    trained_on, held_out = (np.isin(groups, members[i]) for i in _holdout(config, len(members)))
    return np.flatnonzero(trained_on), np.unique(first_alike(hashes)[held_out])


def _holdout(config: Config, num_groups: int) -> tuple[np.ndarray, np.ndarray]:
    return holdout_indices(config.seed, config.holdout, num_groups, config.holdout_at_least)


def _check_holdout(config: Config, category: Category) -> None:
    if not category.num_validation:
        _holdout(config, category.num_train)
    elif config.holdout:
        raise UserError(
            f"config.holdout={config.holdout}: the data have {category.num_validation} images for "
            "validation, which are held out: set --config.holdout=0, or train on them"
        )


def optimizer_of(config: Config) -> optax.GradientTransformation:
    """Return Adam with the config's rate and betas; the paper's have no schedule."""
    return _adam(config.learning_rate, config.adam_b1, config.adam_b2)


_adam = cache(optax.adam)  # so that equal optimisers are one


def scoring_of(config: Config) -> Scoring:
    """Return the settings by which distances become maps and scores."""
    return Scoring(config.blur_sigma, config.image_score, config.map_fusion)


@dataclass(frozen=True, eq=False)
class Plan:
    """One training: its config with a seed, its categories, its place, loss and optimiser."""

    config: Config
    categories: tuple[Category, ...]
    place: Training
    loss: LossFunction
    optimizer: optax.GradientTransformation

    @cached_property
    def trained_on(self) -> np.ndarray:
        """Return which images are not held out, counted through all categories."""
        splits = [category.load() for category in self.categories]
        starts = np.cumsum([0, *(len(split.train) for split in splits)])
        chosen = [held_out_of(self.config, split)[0] for split in splits]
        return np.concatenate([start + of for start, of in zip(starts, chosen, strict=False)])

    @property
    def name(self) -> str:
        """Return the name for progress and messages."""
        name, seed = self.place.name, self.place.seed
        return name if seed is None else f"{name}, seed {seed}"

    @property
    def evaluations(self) -> list[Evaluation]:
        """Return the places of the evaluations, one for each category."""
        return [self.place.evaluation(category.name) for category in self.categories]

    @property
    def last_step(self) -> int:
        """Return the number of steps."""
        return self.steps_until(self.config.num_epochs)

    def steps_every(self, epochs: int) -> set[int]:
        """Return the steps after every `epochs` epochs, without the last; none for 0 epochs."""
        multiples = range(epochs, self.config.num_epochs, epochs) if epochs else ()
        return {self.steps_until(epoch) for epoch in multiples} - {self.last_step}

    def steps_until(self, epoch: int) -> int:
        """Return the number of steps after which each image was used `epoch` times."""
        return steps_until(epoch, len(self.trained_on), self.config.batch_size)


class Given(NamedTuple):
    """Arguments of `rd_jax.fit` that replace values of the config."""

    categories: Sequence[Category] = ()
    loss: LossFunction | None = None
    optimizer: optax.GradientTransformation | None = None


def planned(
    config: Config, workdir: Workdir, categories: Sequence[Category], given: Given
) -> list[Plan]:
    """Return the trainings of a run: one for each category, or one for all, and each seed.

    Raise UserError if the hold-out is empty or leaves nothing to train on, even if all images
    differ.
    """
    groups = [tuple(categories)] if config.joint else [(category,) for category in categories]
    plans = []
    for group, seed in itertools.product(groups, config.seeds or (None,)):
        own = config if seed is None else replace(config, seed=seed)
        place = workdir.training(JOINT if config.joint else group[0].name, seed)
        for category in group:
            _check_holdout(own, category)
        learning = given.loss or LOSSES[own.loss], given.optimizer or optimizer_of(own)
        plans.append(Plan(own, group, place, *learning))
    return plans
