"""What XLA needs for a step after it is compiled, to check a plan. No arrays are made."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from jax_interp.core.errors import UserError
from jax_interp.training.collectives import collectives
from jax_interp.training.planning.planned import PlannedStep


@dataclasses.dataclass(frozen=True)
class Measured:
    """A compiled step, on one device.

    Attributes:
      arguments: bytes of its arguments.
      others: bytes of its results and temporaries that are not in the memory of arguments.
      flops: floating-point operations by `cost_analysis`, which counts the body of a loop once.
      sent: bytes that a device sends, by the mesh axes over which it sends them.
    """

    arguments: int
    others: int
    flops: float
    sent: dict[tuple[str, ...], float]

    @property
    def bytes(self) -> int:
        """All bytes."""
        return self.arguments + self.others

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        sent = {"+".join(axes): size for axes, size in self.sent.items()}
        return {
            "argument_bytes": self.arguments, "other_bytes": self.others, "total_bytes": self.bytes,
            "flops_with_loops_once": self.flops, "sent_bytes": sent,
        }  # fmt: skip


def compile_step(planned: PlannedStep, mesh: Mesh | None) -> Measured:
    """Compile a step for the devices of a mesh, and read what XLA says about it.

    Args:
      planned: the step.
      mesh: a mesh of devices of this process, which may be simulated. None: one device.
    """
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        step = jax.jit(planned.step, donate_argnums=0 if planned.donated else ())
        compiled = step.lower(*planned.arguments(mesh)).compile()
    memory, sent = compiled.memory_analysis(), {}
    if memory is None:
        raise UserError(f"XLA's {jax.default_backend()} backend does not say how much memory a program needs")
    for row in [] if mesh is None else collectives(compiled, mesh):
        sent[row.axes] = sent.get(row.axes, 0) + row.sent
    others = memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    flops = (compiled.cost_analysis() or {}).get("flops", 0.0)
    return Measured(memory.argument_size_in_bytes, others, flops, sent)
