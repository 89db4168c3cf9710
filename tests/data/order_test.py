"""The order of images is a function of seed and step."""

import numpy as np
import pytest

from rd_jax.data.order import batch_indices, steps_until


@pytest.mark.parametrize(("num_images", "batch_size"), [(10, 4), (3, 8), (7, 7), (209, 16)])
def test_every_image_is_used_equally_often(num_images: int, batch_size: int) -> None:
    counts = np.zeros(num_images, int)
    for step in range(50):
        counts += np.bincount(batch_indices(0, step, num_images, batch_size), minlength=num_images)
        assert counts.max() - counts.min() <= 1
    epochs = 6
    used = steps_until(epochs, num_images, batch_size) * batch_size
    assert used - batch_size < epochs * num_images <= used


def test_order_is_a_function_of_seed_and_step() -> None:
    order = [batch_indices(1, step, 10, 4) for step in (5, 0, 5)]
    np.testing.assert_array_equal(order[0], order[2])
    first, other = (
        np.concatenate([batch_indices(seed, s, 100, 50) for s in (0, 1)]) for seed in (1, 2)
    )
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, np.concatenate([batch_indices(1, s, 100, 50) for s in (2, 3)]))
