"""FLOPs, memory traffic and bytes over the mesh of a program, for one device and one step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from jax_interp.training.planning.liveness import VIEWS, is_collective, kept_operations
from jax_interp.training.planning.program import Body, Op, Program, Value

DTYPES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64"}
MATMULS = frozenset({"stablehlo.dot_general", "chlo.ragged_dot", "stablehlo.convolution"})
FREE = VIEWS | frozenset(
    f"stablehlo.{name}"
    for name in (
        "constant", "iota", "broadcast_in_dim", "transpose", "slice", "dynamic_slice", "dynamic_update_slice", "gather",
        "concatenate", "pad", "reverse", "convert", "bitcast_convert", "scatter", "sort",
    )
) | frozenset({"sdy.constant", "sdy.all_slice"})  # fmt: skip
"""Operations that compute nothing: they move or name values."""
COLLECTIVE_NAMES = {
    "all_reduce": "all-reduce",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_to_all": "all-to-all",
    "collective_permute": "collective-permute",
}


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What the devices along one or several mesh axes exchange in a step.

    Attributes:
      axes: the mesh axes.
      kind: as in `training.collectives`: "all-reduce", "all-gather", "reduce-scatter", ...
      bytes: the bytes that each device sends, if the devices form a ring.
      count: the number of collectives.
    """

    axes: tuple[str, ...]
    kind: str
    bytes: int
    count: int


@dataclasses.dataclass(frozen=True)
class Costs:
    """The work of one step on one device.

    Attributes:
      products: floating-point operations of matrix products, by the dtype of the operands.
      other_flops: one for each element that another operation makes.
      traffic: bytes read from and written to the memory of the device.
      exchanges: what goes over the mesh.
    """

    products: Mapping[str, int]
    other_flops: int
    traffic: int
    exchanges: tuple[Exchange, ...]

    @property
    def flops(self) -> int:
        """All floating-point operations."""
        return sum(self.products.values()) + self.other_flops

    def bytes_over(self) -> dict[tuple[str, ...], int]:
        """The bytes that a device sends, by the mesh axes over which it sends them."""
        found: dict[tuple[str, ...], int] = {}
        for exchange in self.exchanges:
            found[exchange.axes] = found.get(exchange.axes, 0) + exchange.bytes
        return found


def costs_of(program: Program, *, loops: bool = True) -> Costs:
    """Count the work of a program.

    Args:
      program: the program of one device.
      loops: whether the body of a loop counts as often as it runs. False: once, as `cost_analysis` of XLA does.
    """
    counter = _Counter(program, loops)
    counter.add(program.main, 1)
    exchanges = tuple(
        Exchange(axes, kind, size, count) for (axes, kind), (size, count) in sorted(counter.exchanged.items())
    )
    return Costs(counter.products, counter.other, counter.traffic, exchanges)


class _Counter:
    def __init__(self, program: Program, loops: bool) -> None:
        self.program, self.loops = program, loops
        self.products: dict[str, int] = {}
        self.other = self.traffic = 0
        self.exchanged: dict[tuple[tuple[str, ...], str], tuple[int, int]] = {}

    def add(self, body: Body, times: int) -> None:
        """Add a body that runs `times` times."""
        values = self.program.values
        for op in body.ops:
            if op.bodies:
                inner = times * (op.trips if self.loops else 1)
                # of several branches one runs: the most expensive one is counted
                for one in op.bodies if op.name == "stablehlo.while" else [_longest(op, values)]:
                    self.add(one, inner)
            elif op.name in MATMULS:
                dtype = DTYPES.get(values[op.inputs[0]].dtype, "float32")
                flops = times * 2 * op.contracted * values[op.outputs[0]].size
                self.products[dtype] = self.products.get(dtype, 0) + flops
            elif is_collective(op):
                self._exchange(op, times)
            else:
                self.other += times * _elements(op, values)
        for kept in kept_operations(body, values)[0]:
            if not kept.op.bodies:
                self.traffic += times * _moved(kept.op, kept.reads, kept.writes, values)

    def _exchange(self, op: Op, times: int) -> None:
        kind = op.name.rpartition(".")[2]
        ways = math.prod(self.program.mesh.get(axis, 1) for axis in op.axes)
        if ways == 1:
            return
        values = self.program.values
        sent = sum(_sent(kind, values[a].bytes, values[b].bytes, ways) for a, b in zip(op.inputs, op.outputs))
        key = (tuple(a for a in op.axes if self.program.mesh.get(a, 1) > 1), COLLECTIVE_NAMES[kind])
        size, count = self.exchanged.get(key, (0, 0))
        self.exchanged[key] = (size + times * sent, count + times)


def _longest(op: Op, values: Mapping[int, Value]) -> Body:
    return max(op.bodies, key=lambda body: sum(_work(one, values) for one in body.ops))


def _work(op: Op, values: Mapping[int, Value]) -> int:
    if op.bodies:
        return op.trips * max(sum(_work(one, values) for one in body.ops) for body in op.bodies)
    return (2 * op.contracted or 1) * sum(values[out].size for out in op.outputs)


def _elements(op: Op, values: Mapping[int, Value]) -> int:
    """The number of operations on single elements."""
    if op.name in FREE:
        return 0
    reduces = op.name in ("stablehlo.reduce", "stablehlo.reduce_window")
    return values[(op.inputs if reduces and op.inputs else op.outputs)[0]].size


def _moved(op: Op, reads: frozenset[int], writes: tuple[int, ...], values: Mapping[int, Value]) -> int:
    """The bytes that an operation reads and writes. A read or an update of a part moves the part."""
    written = sum(values[value].bytes for value in writes)
    if op.name in ("stablehlo.dynamic_update_slice", "stablehlo.scatter") and len(op.inputs) > 1:
        return 2 * values[op.inputs[-1 if op.name.endswith("scatter") else 1]].bytes
    if op.name in ("stablehlo.dynamic_slice", "stablehlo.gather"):
        return 2 * written
    return written + sum(values[value].bytes for value in reads)


def _sent(kind: str, before: int, after: int, ways: int) -> int:
    """The bytes that each device sends in a collective over a ring of `ways` devices."""
    if kind == "all_reduce":
        return 2 * after * (ways - 1) // ways
    if kind == "all_gather":
        return before * (ways - 1)
    if kind in ("reduce_scatter", "all_to_all"):
        return before * (ways - 1) // ways
    return after
