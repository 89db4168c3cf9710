"""One process of a small run, for distributed_test.py: trains, saves, evaluates.

python -m tests.distributed_worker PROCESS_ID NUM_PROCESSES PORT DATA_DIR OUTPUT
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

import tests.tiny  # noqa: F401
from configs import mvtec
from rd_jax import checkpoint, create_train_state, hosts, load_teacher, make_scorer
from rd_jax.data.mvtec import load_category
from rd_jax.evaluate import metrics_of, score_images
from rd_jax.train import make_parallel_train_steps, training

NUM_DEVICES = 4  # over all processes


def main(process_id: int, num_processes: int, port: int, data_dir: Path, output: Path) -> None:
    jax.config.update("jax_num_cpu_devices", NUM_DEVICES // num_processes)
    jax.config.update("jax_enable_x64", True)  # in float32 Adam magnifies the rounding
    if num_processes > 1:
        hosts.initialize(f"localhost:{port}", num_processes, process_id)
    config = mvtec.get_config()
    config.update(backbone="tiny", image_size=32, batch_size=8, num_epochs=2, dtype="float64")
    split = load_category(data_dir, "weave", config.image_size)

    def wide(tree: dict) -> dict:
        return jax.tree.map(lambda x: np.asarray(x, "f8" if x.dtype == np.float32 else None), tree)

    teacher = wide(load_teacher("tiny", "random"))
    first = wide(create_train_state(config, jax.random.key(0)))
    steps = make_parallel_train_steps(config, 1)
    for state, step, _ in training(config, steps, 1, teacher, split.train, first):  # noqa: B007
        pass
    state = jax.device_get(state)
    with checkpoint.writer(output / checkpoint.FOLDER) as save:
        save(step, state.student_variables, state.opt_state, {"config": {}})
    maps, scores = score_images(
        make_scorer(config), teacher, state.student_variables, split.test, 4
    )
    if hosts.is_first():
        np.savez(output / "params.npz", **flatten_dict(state.params, sep="/"))
        metrics = metrics_of(maps, scores, split.labels, split.masks)
        (output / "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *map(Path, sys.argv[4:]))
