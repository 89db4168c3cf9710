"""Whole runs: train or evaluate every category, and write what came out."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rd_jax import checkpoint, report
from rd_jax.config import Config, as_dict, validate
from rd_jax.data import images, mvtec, synthetic
from rd_jax.errors import UserError
from rd_jax.evaluate import evaluate
from rd_jax.progress import append_row, drop_rows_after, followed
from rd_jax.train import TrainState, create_train_state, steps_until, training
from rd_jax.weights import load_teacher, resolve_weights, teacher_sha256

logger = logging.getLogger(__name__)

# Fields that a checkpoint's training does not depend on; for the teacher, its hash is compared.
_FREE_FIELDS = frozenset(
    {
        "data_dir",
        "category",
        "teacher_weights",
        "log_every_steps",
        "eval_every_epochs",
        "checkpoint_every_epochs",
    }
)


class LoadedTeacher(NamedTuple):
    """The frozen teacher of a run and where it came from."""

    weights: str  # "imagenet", "random" or a file
    sha256: str
    variables: dict[str, Any]


def _load(backbone: str, weights: str) -> LoadedTeacher:
    weights = resolve_weights(backbone, weights)
    variables = load_teacher(backbone, weights)
    return LoadedTeacher(weights, teacher_sha256(variables), jax.device_put(variables))


def train(config: Config, workdir: Path) -> str:
    """Trains and evaluates the configured categories; returns the table as Markdown.

    A category that `workdir` holds a checkpoint of goes on from there. All images are decoded
    before the first step, so that a file that cannot be read is known by then. Raises UserError
    for what the user can mend.
    """
    validate(config, jax.device_count())
    data_dir = _data_dir(config)
    names = [config.category] if config.category else mvtec.find_categories(data_dir)
    splits = [mvtec.load_category(data_dir, name, config.image_size) for name in names]
    teacher = _load(config.backbone, config.teacher_weights)
    rows = []
    for split in splits:
        trained = _train_category(config, split, teacher, workdir)
        rows.append(_evaluate_category(config, split, teacher, trained, workdir))
    return report.write_results(workdir, rows)


def evaluate_checkpoints(overrides: Mapping[str, Any], category: str, workdir: Path) -> str:
    """Evaluates what `workdir` holds, with its own configs and `overrides`; returns the table.

    Raises UserError if there is no checkpoint, or if the teacher is not the one trained with.
    """
    rows = []
    for name in [category] if category else _trained_categories(workdir):
        trained = checkpoint.load_trained(workdir, name)
        config = checkpoint.config_of(trained)
        for field in ("backbone", "bottleneck"):
            if overrides.get(field, config[field]) != config[field]:
                raise UserError(
                    f"config.{field}={overrides[field]!r}: the checkpoint in {workdir / name} "
                    f"was trained with {config[field]!r}"
                )
        config.update({"teacher_weights": trained.metadata["teacher_weights"]} | dict(overrides))
        validate(config)
        split = mvtec.load_category(_data_dir(config), name, config.image_size)
        teacher = _load(config.backbone, config.teacher_weights)
        _check_teacher(teacher, trained, workdir / name)
        rows.append(_evaluate_category(config, split, teacher, trained, workdir))
    return report.write_results(workdir, rows)


def _data_dir(config: Config) -> Path:
    if config.data_dir == "synthetic":
        return synthetic.cached_data_dir(images.cache_folder())
    return Path(config.data_dir).expanduser()


def _trained_categories(workdir: Path) -> list[str]:
    names = sorted(folder.parent.name for folder in workdir.glob(f"*/{checkpoint.FOLDER}"))
    if not names:
        raise UserError(f"no checkpoint in {workdir}: train first, with --mode train")
    return names


def _check_teacher(teacher: LoadedTeacher, trained: checkpoint.Checkpoint, folder: Path) -> None:
    sha256 = trained.metadata["teacher_sha256"]
    if teacher.sha256 != sha256:
        raise UserError(
            f"the checkpoint in {folder} was trained with the teacher weights "
            f"{trained.metadata['teacher_weights']} (sha256 {sha256[:12]}...), not with "
            f"{teacher.weights} ({teacher.sha256[:12]}...): set --config.teacher_weights"
        )


def _initial_state(
    config: Config, teacher: LoadedTeacher, folder: Path
) -> tuple[TrainState, Mapping[str, float | None]]:
    """A new state, or that of the latest checkpoint, with the time spent so far."""
    state = create_train_state(config, jax.random.key(config.seed))
    saved = checkpoint.load(folder / checkpoint.FOLDER)
    if saved is None:
        return state, {"train_seconds": 0.0, "images_per_second": None}
    _check_teacher(teacher, saved, folder)
    before, now = saved.metadata["config"], as_dict(config)
    differing = [k for k in now if k not in _FREE_FIELDS and now[k] != before.get(k)]
    if differing:
        changes = ", ".join(f"{k} ({before.get(k)!r}, now {now[k]!r})" for k in differing)
        raise UserError(
            f"{folder} was trained with another config: {changes}; choose another --workdir"
        )
    opt_state = checkpoint.load_opt_state(
        folder / checkpoint.FOLDER, saved.step, jax.device_get(state.opt_state)
    )
    variables = saved.student_variables
    state = TrainState(
        variables["params"], variables["batch_stats"], opt_state, state.step + saved.step
    )
    return state, saved.metadata["timing"]


def _train_category(
    config: Config, split: mvtec.Split, teacher: LoadedTeacher, workdir: Path
) -> checkpoint.Checkpoint:
    """Trains to the last step, from the latest checkpoint if there is one."""
    folder = workdir / split.name
    folder.mkdir(parents=True, exist_ok=True)
    state, timing = _initial_state(config, teacher, folder)
    first_step, num_images = int(state.step), len(split.train)
    last_step = steps_until(config.num_epochs, num_images, config.batch_size)

    def steps_every(epochs: int) -> set[int]:
        multiples = range(epochs, config.num_epochs, epochs) if epochs else ()
        return {steps_until(epoch, num_images, config.batch_size) for epoch in multiples}

    evaluate_at = steps_every(config.eval_every_epochs)
    save_at = steps_every(config.checkpoint_every_epochs) | {last_step}
    log = folder / "metrics.jsonl"
    drop_rows_after(log, first_step)
    logger.info(
        "%s: %d images, steps %d to %d, teacher %s (%s)",
        *(split.name, num_images, first_step, last_step, config.backbone, teacher.weights),
    )
    dispatches = training(
        config, teacher.variables, split.train, state, pause_at=sorted(evaluate_at | save_at)
    )
    clock = _Clock(timing)
    for state, step in followed(
        dispatches,
        log,
        split.name,
        first_step,
        last_step,
        config.batch_size,
        config.log_every_steps,
    ):
        clock.first_dispatch(state, step)
        if step in save_at:
            host_state = jax.device_get(state)
            metadata = {
                "config": as_dict(config),
                "teacher_weights": teacher.weights,
                "teacher_sha256": teacher.sha256,
                "num_steps": step,
                "timing": clock.timing(step, config.batch_size),
            }
            checkpoint.save(
                folder / checkpoint.FOLDER,
                step,
                host_state.student_variables,
                host_state.opt_state,
                metadata,
            )
        if step in evaluate_at:
            with clock.stopped():
                figures = _evaluate(config, split, teacher, jax.device_get(state.student_variables))
                append_row(log, {"step": step, **figures})
    return checkpoint.load_trained(workdir, split.name)


class _Clock:
    """Seconds and speed of one training, over all its resumptions."""

    def __init__(self, timing: Mapping[str, float | None]):
        self._start = time.perf_counter() - (timing["train_seconds"] or 0.0)
        self._images_per_second = timing["images_per_second"]
        self._warm: tuple[int, float] | None = None

    def first_dispatch(self, state: TrainState, step: int) -> None:
        """Waits for the first dispatch, so that the speed is that after compilation."""
        if self._warm is None:
            jax.block_until_ready(state.step)
            self._warm = (step, time.perf_counter())

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What happens inside does not count."""
        before = time.perf_counter()
        yield
        away = time.perf_counter() - before
        self._start += away
        if self._warm is not None:
            self._warm = (self._warm[0], self._warm[1] + away)

    def timing(self, step: int, batch_size: int) -> dict[str, float | None]:
        """What the results say; the device has nothing left to do."""
        now = time.perf_counter()
        if self._warm is not None and step > self._warm[0]:
            self._images_per_second = (step - self._warm[0]) * batch_size / (now - self._warm[1])
        return {"train_seconds": now - self._start, "images_per_second": self._images_per_second}


def _evaluate(
    config: Config, split: mvtec.Split, teacher: LoadedTeacher, student_variables: Any
) -> dict[str, float | None]:
    return evaluate(
        config, teacher.variables, student_variables, split.test, split.labels, split.masks
    )


def _evaluate_category(
    config: Config,
    split: mvtec.Split,
    teacher: LoadedTeacher,
    trained: checkpoint.Checkpoint,
    workdir: Path,
) -> dict[str, Any]:
    """Evaluates a trained category and writes its results.json."""
    start = time.perf_counter()
    metrics = _evaluate(config, split, teacher, trained.student_variables)
    row = {
        "category": split.name,
        **metrics,
        "backbone": config.backbone,
        "teacher_weights": Path(teacher.weights).name,
        "teacher_sha256": teacher.sha256,
        "bottleneck": config.bottleneck,
        "scales": list(config.scales),
        "loss": config.loss,
        "image_size": config.image_size,
        "seed": config.seed,
        "num_epochs": config.num_epochs,
        "num_steps": trained.step,
        **trained.metadata["timing"],
        "eval_seconds": time.perf_counter() - start,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    report.write_json(workdir / split.name / "results.json", row)
    return row
