"""Which rows `benchmarks.speed` has."""

from collections.abc import Mapping
from typing import Any, NamedTuple

OWN = "rd_jax"  # a column, and the process that measures it
PIL = "PIL alone"


class Sizes(NamedTuple):
    """What is measured: images of `size` pixels, float32 on CPU and bfloat16 elsewhere."""

    train_batches: tuple[int, ...]
    score_batches: tuple[int, ...]
    repeats: int
    seconds: float = 0.0  # that a sample takes at least
    size: int = 256
    num_maps: int = 160
    num_files: int = 32
    epochs: int = 0  # of the whole category
    num_train: int = 209  # images, as `bottle`
    num_test: int = 16  # good ones, and of each of four defects


GPU = Sizes((16, 64), (1, 16, 64), repeats=10, seconds=0.3, epochs=200)
CPU = Sizes((4,), (1, 8), repeats=5)
TINY = Sizes((2, 4), (1, 2, 4), 2, size=32, num_maps=8, num_files=2, epochs=1)._replace(
    num_train=8, num_test=1
)


class Job(NamedTuple):
    """What one process is asked to time."""

    process: str
    name: str
    arguments: Mapping[str, Any]


class Row(NamedTuple):
    """One figure by column, each of so many samples."""

    name: str
    jobs: Mapping[str, Job]
    repeats: int
    warm_up: int = 2  # calls that do not count
    has_memory: bool = False


def row_groups(sizes: Sizes, backbone: str, torch_columns: Mapping[str, str]) -> list[list[Row]]:
    """All rows, the most important ones first; each group has processes of its own.

    In a group memory rises, for of JAX's only the highest peak of a process is known.
    """
    of_network = {"backbone": backbone, "size": sizes.size}

    def in_turns(name: str, batch: int) -> Row:
        columns = {OWN: OWN, **torch_columns}
        arguments = {**of_network, "batch": batch}
        jobs = {column: Job(process, name, arguments) for column, process in columns.items()}
        return Row(f"{name}, batch {batch}", jobs, sizes.repeats, has_memory=True)

    def of_run(text: str, cache: str, name: str, **arguments: Any) -> Row:
        job = Job("runs", name, {**of_network, **arguments, "cache": cache})
        return Row(f"{text}, {cache} cache", {OWN: job}, repeats=1, warm_up=0)

    num_maps, files = sizes.num_maps, {"count": sizes.num_files, "size": sizes.size}
    metrics = Job(OWN, "metrics", {"count": num_maps, "size": sizes.size})
    decoding = {OWN: Job(OWN, "decoding", files), PIL: Job(OWN, "decoding by PIL", files)}
    category = {key: getattr(sizes, key) for key in ("epochs", "num_train", "num_test")}
    whole = f"whole category, {sizes.epochs} epochs"
    caches = ("empty", "warm")
    return [
        [in_turns("training step", batch) for batch in sizes.train_batches],
        [
            *(in_turns("scoring", batch) for batch in sizes.score_batches),
            Row(f"metrics of {num_maps} maps", {OWN: metrics}, sizes.repeats),
        ],
        [of_run(whole, c, "whole category", **category) for c in caches if sizes.epochs],
        [Row("decoding, one image", decoding, sizes.repeats)],
        [of_run("cold start to first step", cache, "cold start") for cache in caches],
    ]
