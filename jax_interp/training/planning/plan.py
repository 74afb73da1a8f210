"""`plan_step`: memory, work and time of one step of a trainer on a mesh of a named accelerator."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jax.sharding import AbstractMesh

from jax_interp.training.planning.accelerators import Accelerator
from jax_interp.training.planning.costs import Costs, costs_of
from jax_interp.training.planning.liveness import peak_bytes
from jax_interp.training.planning.partition import partitioned
from jax_interp.training.planning.planned import PlannedStep

TEMPORARIES = "temporaries"
RESERVED = 0.06
"""The share of an accelerator's memory that its runtime keeps for itself, and that fragmentation costs."""


@dataclasses.dataclass(frozen=True)
class StepTime:
    """The seconds that the parts of a step take, if each is done at the stated share of its peak.

    Attributes:
      compute: the products, and the other operations.
      memory: reading and writing the device's memory.
      network: {mesh axes: seconds of what is sent over them}.
    """

    compute: float
    memory: float
    network: Mapping[tuple[str, ...], float]

    @property
    def overlapped(self) -> float:
        """The time of the step if everything overlaps: that of the slowest part."""
        return max(self.compute, self.memory, sum(self.network.values()))

    @property
    def in_turn(self) -> float:
        """The time of the step if nothing is computed while the devices exchange."""
        return max(self.compute, self.memory) + sum(self.network.values())

    @property
    def bound(self) -> str:
        """Which part is the slowest: "compute", "memory" or "network"."""
        parts = {"compute": self.compute, "memory": self.memory, "network": sum(self.network.values())}
        return max(parts, key=lambda name: parts[name])


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run costs.

    Attributes:
      mesh: the size of each mesh axis. Empty: one device without a mesh.
      device: the accelerator.
      memory: bytes on one device, by kind: the arguments of a step, and its temporaries.
      costs: the work of one step on one device.
      time: the time of one step.
      steps: steps of the run.
      tokens: tokens (or rows) in a step.
      efficiency: the share of every peak rate that is assumed to be reached.
    """

    mesh: Mapping[str, int]
    device: Accelerator
    memory: Mapping[str, int]
    costs: Costs
    time: StepTime
    steps: int
    tokens: int
    efficiency: float

    @property
    def devices(self) -> int:
        """The number of devices."""
        return math.prod(self.mesh.values())

    @property
    def bytes(self) -> int:
        """The bytes that one device needs."""
        return sum(self.memory.values())

    @property
    def available(self) -> int | None:
        """The bytes that one device has for a program. None: not known."""
        memory = self.device.memory
        return None if memory is None else int(memory * (1 - RESERVED))

    @property
    def fits(self) -> bool:
        """Whether one device has the memory."""
        return self.available is None or self.bytes <= self.available

    @property
    def hours(self) -> tuple[float, float]:
        """The hours of the run: if everything overlaps, and if nothing overlaps with the network."""
        return self.steps * self.time.overlapped / 3600, self.steps * self.time.in_turn / 3600

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON values."""
        low, high = self.hours
        join = "+".join
        return {
            "mesh": dict(self.mesh),
            "devices": self.devices,
            "device": self.device.name,
            "source": self.device.source,
            "memory_bytes": dict(self.memory) | {"total": self.bytes},
            "available_bytes": self.available,
            "fits": self.fits,
            "flops": {"products": dict(self.costs.products), "other": self.costs.other_flops},
            "memory_traffic_bytes": self.costs.traffic,
            "sent_bytes": {join(axes): size for axes, size in self.costs.bytes_over().items()},
            "collectives": [dataclasses.asdict(one) for one in self.costs.exchanges],
            "step_seconds": {
                "compute": self.time.compute,
                "memory": self.time.memory,
                "network": {join(axes): seconds for axes, seconds in self.time.network.items()},
                "overlapped": self.time.overlapped,
                "in_turn": self.time.in_turn,
                "bound": self.time.bound,
            },
            "efficiency": self.efficiency,
            "steps": self.steps,
            "tokens_per_step": self.tokens,
            "hours": [low, high],
            "device_hours": [low * self.devices, high * self.devices],
        }


def plan_step(planned: PlannedStep, mesh: AbstractMesh | None, device: Accelerator, *, efficiency: float = 0.5) -> Plan:
    """The memory, the work and the time of a step. Nothing is computed or allocated.

    Args:
      planned: the step.
      mesh: a mesh without devices (`training.sharding.abstract_mesh`). None: one device.
      device: the accelerator.
      efficiency: the share of every peak rate that is reached.

    Raises:
      UserError: a mesh axis does not divide the batch or a weight.
    """
    program = partitioned(planned, mesh, device.platform)
    costs = costs_of(program)
    sizes = {} if mesh is None else dict(mesh.shape)
    memory = planned.bytes_by_kind(mesh) | {TEMPORARIES: peak_bytes(program)}
    time = step_time(costs, sizes, device, efficiency)
    return Plan(sizes, device, memory, costs, time, planned.steps, planned.tokens, efficiency)


def step_time(costs: Costs, mesh: Mapping[str, int], device: Accelerator, efficiency: float) -> StepTime:
    """The seconds of each part of a step.

    The last mesh axes are neighbours. An axis whose devices are all in one group (an NVLink domain, a TPU slice) uses
    its links; another axis uses the network.
    """
    slowest = device.flops["float32"]
    compute = sum(flops / device.flops.get(dtype, slowest) for dtype, flops in costs.products.items())
    compute += costs.other_flops / device.vector_flops
    rates, stride = {}, 1
    for axis, size in reversed(list(mesh.items())):
        stride *= size
        rates[axis] = device.links if stride <= device.group else device.network
    network = {
        axes: size / (efficiency * min(rates[axis] for axis in axes)) for axes, size in costs.bytes_over().items()
    }
    return StepTime(compute / efficiency, costs.traffic / device.bandwidth / efficiency, network)
