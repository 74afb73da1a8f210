"""A plan beside a compiled program: the step is compiled in a process of its own, for simulated devices of this CPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from typing import Any

from jax_interp.core import config_json
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import parse_json
from jax_interp.recipes.plan import KINDS, Request, planned_run
from jax_interp.training.meshes import make_mesh
from jax_interp.training.planning.accelerators import Accelerator
from jax_interp.training.planning.compiled import compile_step

MOST_DEVICES = 512


def compile_elsewhere(request: Request) -> dict[str, Any]:
    """Compile the step of a run in another process, which has as many simulated devices as the mesh.

    Args:
      request: what is planned. The program is compiled for a CPU, whatever its device.

    Returns:
      The figures of `Measured.to_json`.

    Raises:
      UserError: the mesh has more than 512 devices, or the program does not compile.
    """
    devices = math.prod((request.mesh or {}).values())
    if devices > MOST_DEVICES:
        raise UserError(f"--compile simulates at most {MOST_DEVICES} devices; this mesh has {devices}: leave it out")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    given = {"config": config_json.to_json(request.config), "mesh": request.mesh, "what": request.what}
    done = subprocess.run(
        [sys.executable, "-m", "jax_interp.recipes.plan_compiled"],
        input=json.dumps(given), capture_output=True, text=True, check=False,
        env=os.environ | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"the program does not compile for {devices} simulated devices: {last}")
    return parse_json(done.stdout.splitlines()[-1], "the compiled plan", nonfinite=True)


def _compile_here(given: dict[str, Any]) -> dict[str, Any]:
    kind = next(kind for field, kind in KINDS.items() if field in given["config"])
    config, mesh = config_json.from_json(kind, given["config"]), given["mesh"]
    request = Request(config, mesh, _SIMULATED, given["what"])
    return compile_step(planned_run(request), None if mesh is None else make_mesh(**mesh, explicit=False)).to_json()


_SIMULATED = Accelerator("cpu", "simulated", "cpu", None, {"float32": 1.0}, 1.0, 1.0, 1.0, 1, 1.0, "none")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_compile_here(parse_json(sys.stdin.read(), "the request", nonfinite=True))) + "\n")
