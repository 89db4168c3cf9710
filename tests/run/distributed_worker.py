"""One process of a small run, for distributed_test.py: trains, saves, evaluates.

python -m tests.run.distributed_worker PROCESS_ID NUM_PROCESSES PORT DATA_DIR OUTPUT
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

import tests.tiny  # noqa: F401
from rd_jax import create_train_state, load_teacher
from rd_jax.config import get_config
from rd_jax.data.mvtec import load_category
from rd_jax.data.order import steps_until
from rd_jax.method.loss import LOSSES
from rd_jax.method.metrics import metrics_of
from rd_jax.method.train import make_parallel_train_steps
from rd_jax.run.build import model_of, optimizer_of, scorer_of
from rd_jax.run.loop import training
from rd_jax.run.scoring import score_images
from rd_jax.store import checkpoint
from rd_jax.system import hosts

NUM_DEVICES = 4  # over all processes


def main(process_id: int, num_processes: int, port: int, data_dir: Path, output: Path) -> None:
    jax.config.update("jax_num_cpu_devices", NUM_DEVICES // num_processes)
    jax.config.update("jax_enable_x64", True)  # in float32 Adam magnifies the rounding
    if num_processes > 1:
        hosts.initialize(f"localhost:{port}", num_processes, process_id)
    fields = dict(backbone="tiny", image_size=32, batch_size=8, num_epochs=2, dtype="float64")
    config = get_config(**fields)
    split = load_category(data_dir, "weave", config.image_size)

    def wide(tree: dict) -> dict:
        return jax.tree.map(lambda x: np.asarray(x, "f8" if x.dtype == np.float32 else None), tree)

    teacher = wide(load_teacher("tiny", "random"))
    model, optimizer = model_of(config), optimizer_of(config)
    first = wide(create_train_state(model, optimizer, jax.random.key(0)))
    steps = make_parallel_train_steps(model, optimizer, LOSSES[config.loss], 1)
    last_step = steps_until(config.num_epochs, len(split.train), config.batch_size)
    arguments = dict(last_step=last_step, batch_size=config.batch_size, seed=config.seed)
    for state, step, _ in training(steps, 1, teacher, split.train, first, **arguments):  # noqa: B007
        pass
    state = jax.device_get(state)
    with checkpoint.writer(output / "checkpoints") as save:
        save(step, state.student_variables, state.rest, {"config": {}})
    maps, scores = score_images(scorer_of(config), teacher, state.student_variables, split.test, 4)
    if hosts.is_first():
        np.savez(output / "params.npz", **flatten_dict(state.params, sep="/"))
        metrics = metrics_of(maps, scores, split.labels, split.masks)
        (output / "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *map(Path, sys.argv[4:]))
