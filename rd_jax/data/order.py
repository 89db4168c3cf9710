"""Choose the images of a step, and those held out, by pure functions of seed and step."""

from functools import lru_cache

import numpy as np

from rd_jax.system.errors import UserError

_HOLDOUT = 2**32  # sets the hold-out's random numbers apart from those of every epoch


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_images: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_images)


def batch_indices(seed: int, step: int, num_images: int, batch_size: int) -> np.ndarray:
    """Return the images [batch_size] of a step, a pure function of its arguments.

    Random permutations of all images follow each other without a gap, and a batch may span two. At
    any time, the numbers of uses of two images differ by at most 1.
    """
    positions = (divmod(step * batch_size + i, num_images) for i in range(batch_size))
    return np.array([_permutation(seed, epoch, num_images)[i] for epoch, i in positions])


def first_epoch(seed: int, num_images: int, batch_size: int) -> np.ndarray:
    """Return the batches of the first epoch [steps, B]; the last is filled with `num_images`."""
    order, missing = _permutation(seed, 0, num_images), -num_images % batch_size
    return np.append(order, np.full(missing, num_images)).reshape(-1, batch_size)


def steps_until(epoch: int, num_images: int, batch_size: int) -> int:
    """Return the number of steps after which every image has been used at least `epoch` times."""
    return -(-epoch * num_images // batch_size)


def holdout_indices(
    seed: int, holdout: float, num_images: int, at_least: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return which images are trained on and which are held out, both sorted.

    `holdout` is a fraction of the images, or their number if it is 1 or more; 0 holds out none. If
    that is fewer than `at_least`, hold out so many, but at most a third. Raise UserError if there
    is a hold-out and either part is empty.
    """
    num_held_out = round(holdout if holdout >= 1 else holdout * num_images)
    if holdout:
        num_held_out = max(num_held_out, min(at_least, num_images // 3))
    if holdout and not 0 < num_held_out < num_images:
        raise UserError(
            f"config.holdout={holdout}: of {num_images} training images (equal ones count once) "
            f"that is {num_held_out}; choose another fraction or number"
        )
    shuffled = np.random.default_rng((seed, _HOLDOUT)).permutation(num_images)
    return np.sort(shuffled[num_held_out:]), np.sort(shuffled[:num_held_out])
