"""A StableHLO module with shardings as a small data structure: operations, values, and their bytes on one device."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

BITS = {"i1": 8, "bf16": 16, "index": 64, "pred": 8}
COLLECTIVES = (
    "sdy.all_reduce", "sdy.all_gather", "sdy.all_to_all", "sdy.reduce_scatter", "sdy.collective_permute",
    "stablehlo.all_reduce", "stablehlo.all_gather", "stablehlo.all_to_all", "stablehlo.reduce_scatter",
    "stablehlo.collective_permute",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Value:
    """A value of the program: its shape on one device, the shape on all devices, and its bytes on one device."""

    shape: tuple[int, ...]
    whole: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * _bits(self.dtype) // 8


@dataclasses.dataclass(frozen=True)
class Op:
    """An operation.

    Attributes:
      name: the name in StableHLO or Shardy, such as "stablehlo.add".
      inputs: the values that it reads.
      outputs: the values that it makes.
      bodies: its regions: the body of a loop, the branches of a choice. Combiners of reductions are left out.
      trips: how often the body of a loop runs.
      contracted: for a matrix product, the number of products in each sum.
      axes: for a collective, the mesh axes that it goes over.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    bodies: tuple[Body, ...] = ()
    trips: int = 1
    contracted: int = 0
    axes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Body:
    """A sequence of operations with parameters and results."""

    parameters: tuple[int, ...]
    ops: tuple[Op, ...]
    results: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """What one device of a mesh runs.

    Attributes:
      main: the operations.
      values: every value by its number.
      donated: the parameters whose memory the results may use.
      mesh: the size of each mesh axis.
    """

    main: Body
    values: Mapping[int, Value]
    donated: frozenset[int]
    mesh: Mapping[str, int]


def read_program(module: Any, mesh: Mapping[str, int]) -> Program:
    """Read an MLIR module whose values have Shardy's shardings. Calls are replaced by what they call."""
    functions = {
        _text(op.attributes["sym_name"]): op for op in module.body.operations if op.operation.name == "func.func"
    }
    reader = _Reader(functions, mesh)
    main = functions["main"]
    donated = frozenset(
        i
        for i, attributes in enumerate(main.attributes["arg_attrs"])
        if "jax.buffer_donor" in str(attributes) or "tf.aliasing_output" in str(attributes)
    )
    block = main.regions[0].blocks[0]
    specs = [_spec_in(str(attributes)) for attributes in main.attributes["arg_attrs"]]
    parameters = tuple(
        reader.new(argument.type, spec, (argument, {})) for argument, spec in zip(block.arguments, specs)
    )
    scope = dict(zip(block.arguments, parameters))
    ops, results = reader.block(block, scope)
    return Program(
        Body(parameters, tuple(ops), results), reader.values, frozenset(parameters[i] for i in donated), dict(mesh)
    )


class _Reader:
    def __init__(self, functions: Mapping[str, Any], mesh: Mapping[str, int]) -> None:
        self.functions, self.mesh, self.values = functions, mesh, {}

    def new(self, kind: Any, spec: Sequence[Sequence[tuple[str, int]]] | None, _: Any = None) -> int:
        """A new value of an MLIR type with a sharding."""
        whole, dtype = _shape_of(kind)
        shape = whole
        if spec is not None and len(spec) == len(whole):
            shape = tuple(-(-n // math.prod(self._ways(axis) for axis in axes)) for n, axes in zip(whole, spec))
        self.values[len(self.values)] = Value(shape, whole, dtype)
        return len(self.values) - 1

    def _ways(self, axis: tuple[str, int]) -> int:
        name, part = axis
        return part or self.mesh.get(name, 1)

    def block(self, block: Any, scope: dict[Any, int]) -> tuple[list[Op], tuple[int, ...]]:
        """The operations of a block, and its results. `scope` has the values that exist already."""
        ops: list[Op] = []
        for op in block.operations:
            name = op.operation.name
            inputs = tuple(scope[operand] for operand in op.operands if operand in scope)
            if name in ("func.return", "stablehlo.return", "sdy.return"):
                return ops, inputs
            if name == "func.call":
                scope |= zip(op.results, self._called(op, inputs, ops))
            elif name == "sdy.manual_computation":
                inner = op.regions[0].blocks[0]
                kinds = (self.new(argument.type, None) for argument in inner.arguments)
                entered = dict(zip(inner.arguments, kinds))
                ops += [Op("reshard", (i,), (entered[a],)) for i, a in zip(inputs, inner.arguments)]
                body, results = self.block(inner, {**scope, **entered})
                outputs = self._outputs(op)
                ops += [*body, *(Op("reshard", (r,), (o,)) for r, o in zip(results, outputs))]
                scope |= zip(op.results, outputs)
            else:
                outputs = self._outputs(op)
                ops.append(self._op(op, name, inputs, outputs, scope))
                scope |= zip(op.results, outputs)
        return ops, ()

    def _called(self, op: Any, inputs: Sequence[int], ops: list[Op]) -> tuple[int, ...]:
        called = self.functions[_text(op.attributes["callee"]).lstrip("@")]
        inner = called.regions[0].blocks[0]
        body, results = self.block(inner, dict(zip(inner.arguments, inputs)))
        ops += body
        return results

    def _outputs(self, op: Any) -> tuple[int, ...]:
        attributes = op.operation.attributes
        specs: Sequence[Any] = [None] * len(op.results)
        for name in ("sdy.sharding", "out_sharding", "out_shardings"):
            if name in attributes:
                specs = _specs_in(str(attributes[name]))
        return tuple(self.new(result.type, spec) for result, spec in zip(op.results, [*specs, *[None] * 99]))

    def _op(self, op: Any, name: str, inputs: tuple[int, ...], outputs: tuple[int, ...], scope: dict[Any, int]) -> Op:
        attributes = op.operation.attributes
        if name in ("stablehlo.while", "stablehlo.case", "stablehlo.if"):
            return self._with_bodies(op, name, inputs, outputs, scope)
        if name == "stablehlo.dot_general":
            dims = re.search(r"lhs_contracting_dimensions = \[([\d, ]*)\]", str(attributes["dot_dimension_numbers"]))
            chosen = [int(n) for n in dims[1].split(",") if n.strip()] if dims else []
            contracted = math.prod(self.values[inputs[0]].shape[i] for i in chosen)
            return Op(name, inputs, outputs, contracted=contracted)
        if name == "chlo.ragged_dot":
            return Op(name, inputs, outputs, contracted=self.values[inputs[0]].shape[-1])
        if name in COLLECTIVES:
            return Op(name, inputs, outputs, axes=self._axes(op, name))
        if name in ("stablehlo.custom_call", "stablehlo.composite"):
            target = attributes["call_target_name"] if name.endswith("call") else attributes["name"]
            return Op(f"{name.rpartition('.')[2]}:{_text(target)}", inputs, outputs)
        return Op(name, inputs, outputs)

    def _with_bodies(
        self, op: Any, name: str, inputs: tuple[int, ...], outputs: tuple[int, ...], scope: dict[Any, int]
    ) -> Op:
        regions = list(op.regions)
        trips = 1
        if name == "stablehlo.while":
            trips, regions = _trip_count(regions[0]), regions[1:]
        bodies = []
        for region in regions:
            inner = region.blocks[0]
            # a carried value has the sharding of the result
            parameters = tuple(self._like(argument, out) for argument, out in zip(inner.arguments, outputs))
            ops, results = self.block(inner, {**scope, **dict(zip(inner.arguments, parameters))})
            bodies.append(Body(parameters, tuple(ops), results))
        return Op(name, inputs, outputs, tuple(bodies), trips)

    def _like(self, argument: Any, out: int) -> int:
        self.values[len(self.values)] = self.values[out]
        return len(self.values) - 1

    def _axes(self, op: Any, name: str) -> tuple[str, ...]:
        attributes = op.operation.attributes
        given = next((str(attributes[n]) for n in attributes_names(attributes) if n in _AXES), "")
        return tuple(dict.fromkeys(re.findall(r'"(\w+)"', given)))


_AXES = ("reduction_axes", "gathering_axes", "reduce_scatter_axes", "params", "slicing_axes")


def attributes_names(attributes: Any) -> list[str]:
    """The names of an operation's attributes."""
    return [attributes[i].name for i in range(len(attributes))]


def _trip_count(condition: Any) -> int:
    """How often a loop of `jax.lax.scan` runs. 1 for a loop whose length depends on data."""
    constants, found = {}, 1
    for op in condition.blocks[0].operations:
        if op.operation.name.endswith(".constant") and (number := re.search(r"dense<(\d+)>", str(op))):
            constants[op.results[0]] = int(number[1])
        if op.operation.name == "stablehlo.compare" and " LT," in str(op):
            found = constants.get(op.operands[1], 1)
    return found


def _specs_in(text: str) -> list[list[list[tuple[str, int]]]]:
    """The shardings in the text of a Shardy attribute: for each value, for each axis of it, (mesh axis, part)."""
    return [_axes_in(found) for found in re.findall(r"<@\w+, \[([^\]]*)\]", text)]


def _spec_in(text: str) -> list[list[tuple[str, int]]] | None:
    found = _specs_in(text)
    return found[0] if found else None


def _axes_in(text: str) -> list[list[tuple[str, int]]]:
    dims = re.findall(r"\{([^}]*)\}", text)
    return [[(name, int(part or 0)) for name, part in re.findall(r'"(\w+)"(?::\(\d+\)(\d+))?', dim)] for dim in dims]


def _shape_of(kind: Any) -> tuple[tuple[int, ...], str]:
    text = str(kind)
    found = re.fullmatch(r"tensor<((?:\d+x)*)([^>,]+)(?:,.*)?>", text)
    if found is None:
        return (), "i1"
    return tuple(int(n) for n in found[1].split("x") if n), found[2]


def _bits(dtype: str) -> int:
    if dtype in BITS:
        return BITS[dtype]
    number = re.search(r"\d+", dtype)
    return max(int(number[0]), 8) if number else 32


def _text(attribute: Any) -> str:
    return str(attribute).strip('"').lstrip("@").strip('"')
