"""A small training in float64 by one of several processes, for hosts_test.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict

import tests.tiny  # noqa: F401
from rd_jax import Model, create_train_state, load_teacher
from rd_jax.method.loss import LOSSES
from rd_jax.method.train import make_parallel_train_steps
from rd_jax.run.batches import Batches, streamed
from rd_jax.run.loop import dispatches
from rd_jax.store import checkpoint
from rd_jax.system import hosts
from tests.run.scores import split_of


def wide(tree: Any) -> Any:
    """In float64: in float32 Adam magnifies the rounding."""
    return jax.tree.map(lambda x: np.asarray(x, "f8" if x.dtype == np.float32 else None), tree)


def trained(data_dir: Path, folder: Path) -> dict[str, np.ndarray]:
    """Trains two epochs on all devices of all processes, and keeps a checkpoint in `folder`."""
    split = split_of(data_dir, "weave")
    teacher = wide(load_teacher("tiny", "random"))
    model, optimizer = Model("tiny", dtype=np.float64), optax.adam(0.005, 0.5, 0.999)
    first = wide(create_train_state(model, optimizer, jax.random.key(0)))
    steps = make_parallel_train_steps(model, optimizer, LOSSES["per_position"], 1)
    num_images = len(split.train)
    batches = Batches(streamed(split.train, np.arange(num_images)), num_images, 8, seed=0)
    for state, step, _ in dispatches(steps, 1, teacher, batches, first, [3]):  # noqa: B007
        pass
    state = jax.device_get(state)
    with checkpoint.writer(folder) as save:
        save(step, state.student_variables, state.rest, {"config": {}})
    return flatten_dict(state.params, sep="/")


def work(arguments: Sequence[str]) -> int:
    """PROCESS_ID NUM_PROCESSES PORT DATA_DIR OUTPUT."""
    process_id, num_processes, port = map(int, arguments[:3])
    data_dir, output = map(Path, arguments[3:])
    jax.config.update("jax_enable_x64", True)
    hosts.initialize(f"localhost:{port}", num_processes, process_id)
    params = trained(data_dir, output / "checkpoints")
    if hosts.is_first():
        np.savez(output / "params.npz", **params)
    return 0
