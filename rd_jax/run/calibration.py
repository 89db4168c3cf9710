"""Set thresholds from more good images, without training: `python -m rd_jax.calibrate`."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import numpy as np

from rd_jax.config import RATES
from rd_jax.data.cache import load_images
from rd_jax.method.thresholds import NormalScores, Thresholds, pixel_table, pooled, thresholds_of
from rd_jax.run.evaluation import judge_again, write_summaries
from rd_jax.run.scoring import score_normal
from rd_jax.run.trained import Trained
from rd_jax.store.lock import alone
from rd_jax.store.thresholds import Added, StoredThresholds, read_thresholds, write_thresholds
from rd_jax.store.workdir import Evaluation
from rd_jax.system.errors import UserError, first_few, printable

logger = logging.getLogger(__name__)

_BATCH_SIZE = 16
_NUM_TOLD = 3  # images that may set the threshold: a bad one among them makes it too high


def add_normal_images(trained: Trained, paths: Sequence[Path], replace: bool = False) -> Thresholds:
    """Set the thresholds of a trained category from more good images, and return them.

    The scores of these images join those of the held-out images or, with `replace`, replace them.
    Results and page are updated. Raise UserError for a file that cannot be read, if all images are
    known already, if one was trained on or held out, or if another process works on the training.
    """
    with _held(trained) as stored:
        images, hashes = load_images(paths, trained.size, trained.config.resize)
        chosen = _unknown(trained, stored, paths, hashes)
        scores, maxima, pixels = score_normal(trained.score, images, _BATCH_SIZE, chosen)
        for i in np.argsort(-scores, kind="stable")[:_NUM_TOLD]:
            logger.info(
                "among the highest: %.4g of %s", scores[i], printable(str(paths[chosen[i]]))
            )
        new = NormalScores(True, scores, maxima, pixel_table(pixels), len(chosen))
        joins = stored.normal.is_held_out and not replace
        normal = pooled([stored.normal, new]) if joins else new
        added = Added(date.today().isoformat(), [hashes[i] for i in chosen], not joins)
        rates = {name: stored.config[name] for name in RATES}
        return _keep(
            trained,
            stored._replace(
                thresholds=thresholds_of(normal, **rates),
                normal=normal,
                added=(*stored.added, added) if joins else (added,),
                before=stored,
            ),
        )


def undo(trained: Trained) -> Thresholds:
    """Go back to the thresholds before the last `add_normal_images`, and return them.

    Raise UserError if there was none, or if another process works on the training.
    """
    with _held(trained) as stored:
        if stored.before is None:
            raise UserError(f"{trained.training.folder}: no images were added, nothing to undo")
        return _keep(trained, stored.before)


@contextmanager
def _held(trained: Trained) -> Iterator[StoredThresholds]:
    """Hold the training's lock; yield the stored thresholds of its only category."""
    if len(trained.categories) > 1:
        raise UserError(
            f"{trained.training.folder} was trained on {', '.join(trained.categories)}, which have "
            "a threshold each: set --workdir to the folder of one of them"
        )
    with alone(trained.training):
        stored = read_thresholds(_place(trained).thresholds, trained.checkpoint.checksum)
        if stored is None:
            raise UserError(
                f"{trained.training.folder} is not evaluated: run python -m rd_jax.main --mode "
                "eval first"
            )
        yield stored


def _place(trained: Trained) -> Evaluation:
    return trained.training.evaluation(trained.categories[0])


def _unknown(
    trained: Trained, stored: StoredThresholds, paths: Sequence[Path], hashes: Sequence[str]
) -> np.ndarray:
    """Return which images to count: each content once, and none that was added before.

    Raise UserError if the training used one of them, or if none is left.
    """
    used = set(trained.checkpoint.metadata["train_hashes"][trained.categories[0]])
    refused = [path for path, content in zip(paths, hashes, strict=True) if content in used]
    if refused:
        raise UserError(
            f"{len(refused)} of {len(paths)} images were trained on or held out in training, by "
            f"their content: {first_few(refused, 3)}: give other good images"
        )
    seen = {content for added in stored.added for content in added.hashes}
    first = {content: i for i, content in reversed([*enumerate(hashes)]) if content not in seen}
    if len(first) < len(paths):
        copies = len(paths) - len(first)
        logger.warning("%d of %d images are copies, which do not count", copies, len(paths))
    if not first:
        raise UserError("all these images were added before: give other good images")
    return np.array(sorted(first.values()))


def _keep(trained: Trained, stored: StoredThresholds) -> Thresholds:
    place = _place(trained)
    write_thresholds(place.thresholds, stored)
    judge_again(place, stored.thresholds)
    write_summaries(place.workdir)
    return stored.thresholds
