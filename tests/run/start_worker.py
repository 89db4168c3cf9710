"""One process of several runs that fail at their start, one after the other, for start_test.py.

python -m tests.run.start_worker PROCESS_ID NUM_PROCESSES PORT COMMANDS

COMMANDS is JSON: a list of command lines. Prints what each left, as JSON.
"""

import json
import sys

import jax

import tests.tiny  # noqa: F401
from rd_jax.system import hosts
from tests.command import run

jax.config.update("jax_num_cpu_devices", 2)
hosts.initialize(f"localhost:{sys.argv[3]}", int(sys.argv[2]), int(sys.argv[1]))
print(json.dumps([run(*command) for command in json.loads(sys.argv[4])]))
