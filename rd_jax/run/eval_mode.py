"""Evaluate the checkpoints of a workdir, or a file of the authors' code: `--mode eval`."""

import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rd_jax.config import FIELDS, Config, Depends, changed, from_dict, validate
from rd_jax.data import Category, chosen_names
from rd_jax.data.sources import find_categories
from rd_jax.run.evaluation import evaluate, write_summaries
from rd_jax.run.plan import chosen_name, source_of, teacher_of
from rd_jax.run.trained import Trained, check_teacher, facts_of
from rd_jax.store import checkpoint
from rd_jax.store.checkpoint import Checkpoint
from rd_jax.store.lock import alone
from rd_jax.store.results import TIMING
from rd_jax.store.workdir import JOINT, Training, Workdir
from rd_jax.system.errors import UserError
from rd_jax.system.files import is_inside, user_path
from rd_jax.weights.teacher import load_rd4ad


def evaluate_checkpoints(overrides: Mapping[str, Any], name: str, workdir: Path) -> str:
    """Evaluate the trainings in `workdir` with their configs and `overrides`; return the table.

    `name` is a category or class, or categories between commas, or "" for all. Raise UserError
    if there is no checkpoint, if the teacher is not the one trained with, if an override changes a
    field that training has fixed, or if another process works on a training.
    """
    Workdir(workdir).check_is_outermost()
    chosen = _chosen(workdir, name, overrides.get("seeds", ()))
    Workdir(workdir).make([t.evaluation(name) for t, names in chosen.items() for name in names])
    for training, categories in chosen.items():
        with alone(training):
            trained = _trained(training, overrides)
            for category in categories:
                (found,) = find_categories(source_of(trained.config), category)
                check_apart([found], workdir)
                evaluate(trained, found.load(), training.evaluation(category))
    return write_summaries(workdir)


def _trained(training: Training, overrides: Mapping[str, Any]) -> Trained:
    loaded = checkpoint.load_latest(training.checkpoints)
    config = from_dict(loaded.metadata["config"])
    for field, value in overrides.items():
        if FIELDS[field].depends & Depends.CHECKPOINT and value != getattr(config, field):
            raise UserError(
                f"config.{field}={value!r}: the checkpoint in {training.folder} was trained "
                f"with {getattr(config, field)!r}"
            )
    config = changed(config, overrides)
    teacher = teacher_of(config)
    check_teacher(teacher, loaded.metadata, training.folder)
    return Trained(training, config, loaded, teacher)


def _chosen(workdir: Path, name: str, seeds: Sequence[int]) -> dict[Training, list[str]]:
    """Return the trainings with a checkpoint, and their chosen categories."""
    found: dict[Training, list[str]] = {}
    for training in Workdir(workdir).trainings():
        metadata = checkpoint.latest_metadata(training.checkpoints)
        if metadata and (not seeds or training.seed in seeds):
            found[training] = list(metadata["train_sha256"])
    known = [category for categories in found.values() for category in categories]
    asked = chosen_names(unicodedata.normalize("NFC", name), known)
    missing = [each for each in asked if each not in known]
    if missing or not found:
        which = f" of {', '.join(missing)}" if missing else ""
        which += f" with seeds {tuple(seeds)}" if seeds else ""
        raise UserError(f"no checkpoint{which} in {workdir}: train first, with --mode train")
    chosen = {t: [each for each in there if each in asked] for t, there in found.items()}
    return {training: categories for training, categories in chosen.items() if categories}


def check_apart(categories: Sequence[Category], workdir: Path) -> None:
    """Raise UserError if `workdir` lies in the data, or the data where a training is kept."""
    folders = [(category, folder) for category in categories for folder in category.folders]
    for _, folder in folders:
        if is_inside(workdir, folder):
            raise UserError(f"--workdir {workdir} lies in the data, {folder}: choose another")
    for category, folder in folders:
        for place in (workdir / category.name, workdir / JOINT):
            if is_inside(folder, place):
                raise UserError(
                    f"the data {folder} lie in {place}, where the training is kept: choose "
                    "another --workdir"
                )


def evaluate_rd4ad(config: Config, workdir: Path) -> str:
    """Evaluate `config.rd4ad_checkpoint`, a file of the authors' code; return the table.

    Keep it as a checkpoint of this package, for predictions and exports.

    Raise UserError if it cannot be read or does not fit, if the config does not name one
    category, or if `workdir` holds a training of that category.
    """
    validate(config)
    _check_rd4ad(config)
    config = replace(config, holdout=0.0)  # nobody knows which images it was trained on
    variables = load_rd4ad(user_path(config.rd4ad_checkpoint), config.backbone)
    category, *others = find_categories(source_of(config), chosen_name(config))
    if others:
        raise UserError(
            "config.rd4ad_checkpoint is of one category: set --config.category (or normal_class)"
        )
    check_apart([category], workdir)
    run = Workdir(workdir)
    for there in run.trainings():
        if there.name in (category.name, JOINT) and not _is_rd4ad(there):
            raise UserError(f"{there.folder} holds a training: choose another --workdir")
    teacher, place = teacher_of(config), run.training(category.name)
    evaluation = place.evaluation(category.name)
    run.make([place])
    with alone(place):
        split = category.load()
        facts = facts_of(config, teacher, [split], last_step=0) | {"timing": dict.fromkeys(TIMING)}
        shutil.rmtree(place.checkpoints, ignore_errors=True)  # from another file
        with checkpoint.writer(place.checkpoints) as save:
            saved = Checkpoint(0, variables, facts, save(0, variables, None, facts))
        evaluate(Trained(place, config, saved, teacher), split, evaluation)
    return write_summaries(workdir)


def _is_rd4ad(training: Training) -> bool:
    metadata = checkpoint.latest_metadata(training.checkpoints)
    return bool(metadata and metadata["config"]["rd4ad_checkpoint"])


def _check_rd4ad(config: Config) -> None:
    if config.seeds:
        raise UserError(f"config.seeds={config.seeds!r}: rd4ad_checkpoint is trained already")
    if config.joint:
        raise UserError("config.joint=True: rd4ad_checkpoint is of one category: leave it out")
    for field in ("bottleneck", "direction"):
        value, default = getattr(config, field), FIELDS[field].default
        if value != default:
            raise UserError(f"config.{field}={value!r}: the authors' checkpoints have {default!r}")
