"""One process of a run that runs several commands one after another, for test_commands_over_processes.py:

    python commands_script.py COORDINATOR PROCESSES PROCESS PLAN

PLAN is a JSON file, {name: arguments of `jax-interp`}. What command `name` prints in process i is left in the files
`name.i.out` and `name.i.err` beside the plan. The first failure ends the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from jax_interp.cli.main import main
from jax_interp.training import join_processes


def run_all(plan: Path, index: int) -> None:
    for name, arguments in json.loads(plan.read_text()).items():
        with (
            (plan.parent / f"{name}.{index}.out").open("w") as out,
            (plan.parent / f"{name}.{index}.err").open("w") as err,
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere if index else out),  # as `cli.processes.run_joined` does
            contextlib.redirect_stderr(err),
        ):
            code = main([*arguments, "--debug"])
        if code:
            sys.exit(f"{name} ended with exit code {code}")


if __name__ == "__main__":
    coordinator, count, number, plan_file = sys.argv[1:]
    alone = contextlib.nullcontext()
    with alone if count == "1" else join_processes(coordinator, int(count), int(number)):
        run_all(Path(plan_file), int(number))
