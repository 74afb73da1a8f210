"""Plans beside compiled programs: memory, FLOPs and bytes over the mesh of ten training steps, on eight devices.

    python benchmarks/plan.py                   all ten: some minutes
    python benchmarks/plan.py SPD "end to end"

The programs are compiled for eight simulated devices of the CPU. Nothing runs, so the figures do not depend on the load
of the machine.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from plan_cases import CASES, MESHES

from jax_interp.training.meshes import abstract_mesh, make_mesh
from jax_interp.training.planning.compiled import compile_step
from jax_interp.training.planning.costs import costs_of
from jax_interp.training.planning.liveness import peak_bytes
from jax_interp.training.planning.partition import partitioned

MB = 1e6


def main(names: list[str]) -> None:
    """Print a row for each case."""
    print("| step | mesh | MB, plan | MB, XLA | ratio | GFLOP, plan | GFLOP, XLA | MB sent, plan | MB sent, XLA |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in names:
        planned, sizes = CASES[name](), MESHES[name]
        mesh = abstract_mesh(**sizes, explicit=False)
        program = partitioned(planned, mesh, "cpu")
        once, costs = costs_of(program, loops=False), costs_of(program)
        ours = sum(planned.bytes_by_kind(mesh).values()) + peak_bytes(program)
        xla = compile_step(planned, make_mesh(**sizes, explicit=False))
        memory = f"{ours / MB:.1f} | {xla.bytes / MB:.1f} | {ours / xla.bytes:.2f}"
        flops = f"{once.flops / 1e9:.2f} | {xla.flops / 1e9:.2f}"
        sent = f"{sum(costs.bytes_over().values()) / MB:.1f} | {sum(xla.sent.values()) / MB:.1f}"
        mesh_text = ",".join(f"{axis}={size}" for axis, size in sizes.items())
        print(f"| {name} | {mesh_text} | {memory} | {flops} | {sent} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(CASES))
