"""An estimate of the memory that a step needs besides its arguments: which values exist at the same time.

It follows what XLA does with a program. Elementwise operations are computed inside the operation that reads them, and
have no memory of their own. An update in place uses the memory of its operand, if nothing reads the operand later. The
carried values of a loop keep their memory. The next state is written over the state, which is donated.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from jax_interp.training.planning.program import Body, Op, Program, Value

VIEWS = frozenset({"stablehlo.reshape", "stablehlo.optimization_barrier", "reshard", "sdy.reshard", "stablehlo.tuple"})
CONSTANTS = frozenset({"sdy.constant", "stablehlo.constant", "stablehlo.iota", "stablehlo.partition_id"})
NEED_MEMORY = frozenset(
    {
        "stablehlo.dot_general", "chlo.ragged_dot", "stablehlo.convolution", "stablehlo.while", "stablehlo.case",
        "stablehlo.if", "stablehlo.scatter", "stablehlo.sort", "chlo.top_k", "stablehlo.reduce", "stablehlo.rng",
        "stablehlo.reduce_window", "stablehlo.rng_bit_generator", "stablehlo.dynamic_update_slice",
        "stablehlo.select_and_scatter", "stablehlo.cholesky", "stablehlo.triangular_solve", "stablehlo.fft",
    }
)  # fmt: skip
"""Operations whose results are always in memory."""
READ_MEMORY = NEED_MEMORY - {"stablehlo.reduce", "stablehlo.dynamic_update_slice"}
"""Operations that cannot compute an operand as they go: it must be in memory."""
IN_PLACE = frozenset({"stablehlo.dynamic_update_slice", "stablehlo.scatter", "stablehlo.sort"})
EXPENSIVE = frozenset(
    f"stablehlo.{name}"
    for name in ("exponential", "log", "tanh", "logistic", "power", "sqrt", "rsqrt", "sine", "cosine", "log_plus_one",
                 "exponential_minus_one", "cbrt", "atan2", "divide", "gather", "erf")
) | {"chlo.erf", "chlo.erf_inv", "chlo.log1p"}  # fmt: skip
"""Operations that are not computed twice: their result is kept if several operations read it."""


def is_collective(op: Op) -> bool:
    """Whether an operation exchanges data between devices."""
    return bool(op.axes)


@dataclasses.dataclass(frozen=True)
class Kept:
    """An operation whose results are in memory, and what it reads from memory (through what is computed inside it)."""

    op: Op
    reads: frozenset[int]
    writes: tuple[int, ...]


def kept_operations(body: Body, values: Mapping[int, Value]) -> tuple[list[Kept], Mapping[int, int]]:
    """The operations of a body whose results are in memory, and the value whose memory each view shows.

    Returns:
      (operations in the order of the program, {view: value}).
    """
    shown = {value: value for value in body.parameters}
    producer: dict[int, Op] = {}
    users: dict[int, list[Op]] = defaultdict(list)
    for op in body.ops:
        for value in op.outputs:
            producer[value] = op
            shown[value] = shown.get(op.inputs[0], op.inputs[0]) if op.name in VIEWS and op.inputs else value
        if op.name not in VIEWS:
            for value in _all_inputs(op):
                users[shown.get(value, value)].append(op)
    results = {shown.get(value, value) for value in body.results}

    def in_memory(value: int) -> bool:
        op = producer.get(value)
        if op is None:
            return True
        if op.name in CONSTANTS or _broadcasts(op, values):
            return value in results or any(user.name in ("stablehlo.while",) for user in users[value])
        if op.name in NEED_MEMORY or is_collective(op) or ":" in op.name or op.bodies:
            return True
        if value in results or any(_reads_memory(user) for user in users[value]):
            return True
        if values[value].dtype.startswith(("i", "ui")) and any(u.name == "stablehlo.reduce" for u in users[value]):
            return True  # XLA sums integers as a tree, over a value in memory
        return op.name in EXPENSIVE and len(users[value]) > 1

    kept = {value: in_memory(value) for value in (v for op in body.ops for v in op.outputs)}
    reads: dict[int, frozenset[int]] = {}

    def sources(value: int) -> frozenset[int]:
        value = shown.get(value, value)
        return frozenset({value}) if kept.get(value, True) else reads.get(value, frozenset())

    operations = []
    for op in body.ops:
        if op.name in VIEWS:
            continue
        read = frozenset().union(*(sources(value) for value in _all_inputs(op)))
        written = tuple(value for value in op.outputs if kept[value])
        reads |= dict.fromkeys(op.outputs, read)
        if written:
            operations.append(Kept(op, read, written))
    return operations, shown


def _reads_memory(op: Op) -> bool:
    return op.name in READ_MEMORY or is_collective(op) or ":" in op.name or bool(op.bodies)


def _broadcasts(op: Op, values: Mapping[int, Value]) -> bool:
    """Whether an operation only repeats a smaller value."""
    return op.name == "stablehlo.broadcast_in_dim" and (
        not op.inputs or values[op.inputs[0]].size < values[op.outputs[0]].size
    )


def _all_inputs(op: Op) -> tuple[int, ...]:
    """What an operation reads, also inside its bodies."""
    if not op.bodies:
        return op.inputs
    inside = [value for body in op.bodies for value in captured(body)]
    return (*op.inputs, *dict.fromkeys(inside))


def captured(body: Body) -> Iterator[int]:
    """The values from outside that a body reads."""
    own = {*body.parameters, *(value for op in body.ops for value in op.outputs)}
    reads = [value for op in body.ops for value in _all_inputs(op)] + list(body.results)
    return (value for value in dict.fromkeys(reads) if value not in own)


def peak_bytes(program: Program) -> int:
    """The largest number of bytes of results and temporaries that exist at one time, besides the arguments."""
    donated = _pairs(program.main, program.donated, program.values)
    return _peak(program.main, program.values, donated)


def _pairs(body: Body, donated: Iterable[int], values: Mapping[int, Value]) -> dict[int, int]:
    """{result: the donated parameter whose memory it uses}. Pairs have one shape and dtype."""
    free = [value for value in body.parameters if value in donated]
    out: dict[int, int] = {}
    for result in body.results:
        found = next((p for p in free if values[p] == values[result]), None)
        if found is not None and result not in out:
            out[result] = found
            free.remove(found)
    return out


def _peak(body: Body, values: Mapping[int, Value], replaces: Mapping[int, int]) -> int:
    """The peak of a body. `replaces`: {result: parameter whose memory it may use}."""
    memory, peak = _Memory(body, values, replaces), 0
    for now, kept in enumerate(memory.operations):
        inside = max((_peak(inner, values, _carried(kept.op, inner)) for inner in kept.op.bodies), default=0)
        memory.begin(now, kept)
        peak = max(peak, memory.live + inside)
        memory.end(now, kept)
    return peak


def _carried(op: Op, body: Body) -> dict[int, int]:
    """For the body of a loop, the parameter whose memory each result uses."""
    return dict(zip(body.results, body.parameters)) if op.name == "stablehlo.while" else {}


class _Memory:
    """Which values of a body are in memory while its operations run one after the other.

    live: the bytes in use, without the parameters.
    last: the last operation that reads a value.
    size: the bytes of each piece of memory, under the value for which it was made.
    home: the piece of memory that a value is in. A parameter is in its own.
    """

    def __init__(self, body: Body, values: Mapping[int, Value], replaces: Mapping[int, int]) -> None:
        self.values, self.live = values, 0
        self.operations, shown = kept_operations(body, values)
        self.target = {shown.get(result, result): parameter for result, parameter in replaces.items()}
        self.writable = set(replaces.values())
        self.last: dict[int, int] = {shown.get(value, value): len(self.operations) for value in body.results}
        for now, kept in enumerate(self.operations):
            self.last |= {value: max(now, self.last.get(value, 0)) for value in kept.reads}
        self.size: dict[int, int] = {}
        self.home: dict[int, int] = {}
        self.until: dict[int, int] = {}

    def begin(self, now: int, kept: Kept) -> None:
        """Give memory to the results of an operation."""
        written: set[int] = set()  # pieces that this operation has taken over
        for value in kept.writes:
            place = self._taken_over(now, kept, value, written)
            owner = value if place is None else self.home.get(place, place)
            written.add(owner)
            self.home[value] = owner
            self.until[owner] = max(self.until.get(owner, 0), self.last.get(value, now))
            if place is None:
                self.size[value] = self.values[value].bytes
                self.live += self.size[value]

    def end(self, now: int, kept: Kept) -> None:
        """Free what nothing reads any more."""
        for value in (*kept.reads, *kept.writes):
            owner = self.home.get(value, value)
            if owner in self.size and self.until[owner] <= now:
                self.live -= self.size.pop(owner)

    def _taken_over(self, now: int, kept: Kept, value: int, written: set[int]) -> int | None:
        """The value whose memory a new value takes over. None: it needs memory of its own."""
        op, wanted = kept.op, self.target.get(value)
        elementwise = not _reads_memory(op) and op.name != "stablehlo.reduce"
        if wanted is not None and self.last.get(wanted, -1) < now + elementwise:
            return wanted
        if op.name in IN_PLACE or op.name == "stablehlo.while":
            candidates = op.inputs[op.outputs.index(value) :][:1]
        elif elementwise:
            candidates = tuple(one for one in kept.reads if self.values[one].bytes == self.values[value].bytes)
        else:
            candidates = ()
        return next((one for one in candidates if one in kept.reads and self._ends(now, one, written)), None)

    def _ends(self, now: int, value: int, written: set[int]) -> bool:
        """Whether the memory of a value can be written over by the operation that reads it last."""
        owner = self.home.get(value, value)
        mine = value in self.home or owner in self.writable
        return mine and owner not in written and max(self.last.get(value, now), self.until.get(owner, now)) <= now
