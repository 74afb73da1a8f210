"""The program of a step as each device of a mesh runs it, before it is compiled.

The step is traced and lowered for a mesh without devices. Shardy, the part of XLA that chooses shardings, then assigns
a sharding to every value and writes down the collectives between them. This takes a second for any number of devices.
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax
from jax.sharding import AbstractMesh

from jax_interp.training.planning.planned import PlannedStep
from jax_interp.training.planning.program import Program, read_program

PASSES = (
    "builtin.module(sdy-propagation-pipeline)",
    "builtin.module(func.func(sdy-insert-explicit-reshards{enable-full-version=true}))",
    "builtin.module(func.func(sdy-reshard-to-collectives))",
)


def lowered(planned: PlannedStep, mesh: AbstractMesh | None, platform: str) -> Any:
    """The step, lowered for a platform ("cpu", "cuda", "tpu") on a mesh without devices."""
    around = contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh)
    with around:
        step = jax.jit(planned.step, donate_argnums=0 if planned.donated else ())
        return step.trace(*planned.arguments(mesh)).lower(lowering_platforms=(platform,))


def partitioned(planned: PlannedStep, mesh: AbstractMesh | None, platform: str) -> Program:
    """The program of one device, with its collectives.

    Args:
      planned: the step.
      mesh: the mesh. None: one device.
      platform: "cpu", "cuda" or "tpu". Some operations have a different form on each.
    """
    from jaxlib.mlir.passmanager import PassManager

    module = lowered(planned, mesh, platform).compiler_ir("stablehlo")
    with module.context:
        for passes in PASSES:
            PassManager.parse(passes).run(module.operation)
    return read_program(module, {} if mesh is None else dict(mesh.shape))
