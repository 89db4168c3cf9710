"""The batches of a training: rows of what is kept on the devices, or images sent to them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rd_jax.data import Joined
from rd_jax.data.order import batch_indices
from rd_jax.method.train import AXIS, Batch

Images = np.ndarray | Joined  # [N, H, W, 3] uint8
Take = Callable[[np.ndarray], Batch]  # of indices [local devices, steps, B / devices]


def placement() -> tuple[NamedSharding, NamedSharding]:
    """Return the shardings "on all local devices" and "split over them"."""
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))


@dataclass(frozen=True)
class Batches:
    """The batch of each step, as a function of the seed and the step."""

    take: Take
    num_images: int  # that indices choose from
    batch_size: int  # over all devices of all processes
    seed: int

    def of_steps(self, step: int, num_steps: int, max_steps: int) -> Batch:
        """Return arrays [local devices, max_steps, B / devices, ...] from `step` on.

        Only the first `num_steps` entries are valid. Each process makes its own share.
        """
        share = self.batch_size // jax.process_count()
        own = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
        indices = np.zeros((max_steps, share), np.int32)
        for i in range(num_steps):
            indices[i] = batch_indices(self.seed, step + i, self.num_images, self.batch_size)[own]
        return self.take(indices.reshape(max_steps, jax.local_device_count(), -1).swapaxes(0, 1))


def streamed(images: Images, chosen: np.ndarray) -> Take:
    """Return a function that copies rows of the `chosen` images to the devices."""
    _, split = placement()

    def take(indices: np.ndarray) -> Batch:
        rows = images[chosen[indices.ravel()]]
        return Batch(jax.device_put(rows.reshape(*indices.shape, *rows.shape[1:]), split))

    return take


def taken_from(kept: Batch) -> Take:
    """Return a function that picks rows of what each device has; see `kept_on_devices`."""
    _, split = placement()

    @partial(jax.jit, out_shardings=split)
    def rows(kept: Batch, indices: jax.Array) -> Batch:
        return jax.tree.map(lambda x: x.at[indices].get(mode="promise_in_bounds"), kept)

    return lambda indices: rows(kept, jax.device_put(indices, split))


def kept_on_devices(
    encode: Callable[[jax.Array], Batch], images: Images, chosen: np.ndarray, chunk_size: int
) -> Batch:
    """Return what `encode` makes of the `chosen` images, so many at a time, on each local device.

    `encode` takes images that are split over the devices, and returns rows that all of them have.
    The rows after the last image are copies of it.
    """
    replicated, split = placement()

    @partial(jax.jit, donate_argnums=0)
    def written(kept: Batch, rows: Batch, start: jax.Array) -> Batch:
        return jax.tree.map(
            lambda x, y: lax.dynamic_update_slice_in_dim(x, y, start, axis=0), kept, rows
        )

    last = len(chosen) - 1
    num_rows = (last // chunk_size + 1) * chunk_size

    def rows_from(start: int) -> Batch:
        of_chunk = chosen[np.minimum(np.arange(start, start + chunk_size), last)]
        return encode(jax.device_put(images[of_chunk], split))

    kept = jax.tree.map(
        lambda x: jnp.zeros((num_rows, *x.shape[1:]), x.dtype, device=replicated), rows_from(0)
    )
    for start in range(0, num_rows, chunk_size):
        kept = written(kept, rows_from(start), np.int32(start))
    return kept
