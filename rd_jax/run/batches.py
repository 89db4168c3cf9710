"""Make the batches of a training: rows kept on the devices, or images sent to them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rd_jax.data import Joined
from rd_jax.data.order import batch_indices
from rd_jax.method.train import AXIS, Batch

Images = np.ndarray | Joined  # [N, H, W, 3] uint8
Take = Callable[[np.ndarray], Batch]  # takes indices [local devices, steps, B / devices]


def placement() -> tuple[NamedSharding, NamedSharding]:
    """Return the shardings "on all local devices" and "split over them"."""
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))


@dataclass(frozen=True)
class Batches:
    """The batch of each step, as a function of the seed and the step."""

    take: Take
    num_images: int  # indices choose from so many
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


def kept(
    encode: Callable[[jax.Array], Batch], images: Images, chosen: np.ndarray, chunks: np.ndarray
) -> Take:
    """Return a function that encodes the `chosen` images [N] once and picks rows of the result.

    The rows stay on each local device. `chunks` [C, B] holds the places of the images, filled with
    N. The function encodes a chunk when the first of its images is asked for. It encodes it as a
    whole, so that the rows are the same bits in every run. `encode` takes images that are split
    over the devices, and returns rows that all devices have.
    """
    replicated, split = placement()
    count, is_there = len(chosen), np.zeros(len(chunks), bool)
    chunk_of = np.argsort(chunks.ravel())[:count] // chunks.shape[1]
    on_devices: list[Batch] = []

    def empty(row: jax.Array) -> jax.Array:
        return jnp.zeros((count, *row.shape[1:]), row.dtype, device=replicated)

    @partial(jax.jit, donate_argnums=0)
    def written(kept: Batch, rows: Batch, places: jax.Array) -> Batch:
        return jax.tree.map(lambda x, y: x.at[places].set(y, mode="drop"), kept, rows)

    @partial(jax.jit, out_shardings=split)
    def picked(kept: Batch, places: jax.Array) -> Batch:
        return jax.tree.map(lambda x: x.at[places].get(mode="promise_in_bounds"), kept)

    def take(indices: np.ndarray) -> Batch:
        for chunk in np.unique(chunk_of[indices]):
            if not is_there[chunk]:
                of_chunk = chosen[np.minimum(chunks[chunk], count - 1)]
                rows = encode(jax.device_put(images[of_chunk], split))
                before = on_devices.pop() if on_devices else jax.tree.map(empty, rows)
                on_devices.append(written(before, rows, chunks[chunk]))
                is_there[chunk] = True
        return picked(on_devices[0], jax.device_put(indices, split))

    return take
