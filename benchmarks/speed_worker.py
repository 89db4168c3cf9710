"""One implementation in a process of its own: `benchmarks.speed` asks, a line of JSON each.

python -m benchmarks.speed_worker rd_jax|eager|tuned|runs [--cpu]
"""

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Iterable
from functools import partial
from typing import Any, TextIO

from benchmarks.implementation import Call, Implementation

MODULES = {
    "rd_jax": "speed_jax",
    "eager": "speed_torch",
    "tuned": "speed_torch",
    "runs": "speed_runs",
}


def sample(call: Call, seconds: float) -> float:
    """Seconds for one of what `call` does, over so many seconds or one call that is longer."""
    start, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - start < seconds:
        call.call()
        calls += 1
    return (time.perf_counter() - start) / (calls * call.number)


def serve(implementation: Implementation, requests: Iterable[str], answers: TextIO) -> None:
    """Answers until there are no more requests, or one fails: what it left may be in the way.

    {"facts": _} what the implementation is; {"prepare": JOB, "arguments": ..., "warm_up": CALLS};
    {"sample": JOB, "seconds": ...} the "seconds" of one of what it does; {"release": _} frees what
    was prepared: "peak_bytes" until then, and whether "is_exact", or of something before.
    """
    prepared: dict[str, Call] = {}
    before = implementation.peak_bytes()

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal before
        if "facts" in request:
            return implementation.facts
        if "prepare" in request:
            call = implementation.jobs[request["prepare"]](**request["arguments"])
            for _ in range(request["warm_up"]):
                call.call()
            prepared[request["prepare"]] = call
            return {}
        if "sample" in request:
            return {"seconds": sample(prepared[request["sample"]], request["seconds"])}
        prepared.clear()
        gc.collect()
        peak = implementation.peak_bytes()
        is_exact = peak > before
        implementation.release()
        before = implementation.peak_bytes()
        return {"peak_bytes": peak, "is_exact": is_exact}

    say = partial(print, file=answers, flush=True)
    for line in requests:
        try:
            say(json.dumps(answer(json.loads(line))))
        except Exception as error:  # all kinds of them, as out of memory
            first = str(error).strip().partition("\n")[0]
            say(json.dumps({"failed": f"{type(error).__name__}: {first}"}))
            return


def main() -> None:
    """Serves on standard input and output; what libraries print goes to standard error."""
    kind, is_cpu = sys.argv[1], "--cpu" in sys.argv
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        module = importlib.import_module(f"benchmarks.{MODULES[kind]}")
        serve(module.implementation(kind, is_cpu), sys.stdin, answers)


if __name__ == "__main__":
    main()
