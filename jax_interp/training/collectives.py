"""What a compiled program communicates, by mesh axis, read from its HLO.

    compiled = jax.jit(step).lower(state, batch).compile()
    for row in collectives(compiled, mesh):
        print(row.kind, "+".join(row.axes), row.count, row.bytes)

A program has a collective where devices exchange numbers: the sum of a gradient over `data` is an all-reduce, the
gathering of a weight over `fsdp` an all-gather.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from jax_interp.core.errors import UserError

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
         "collective-broadcast")  # fmt: skip


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same mesh axes, in one call of a program.

    Attributes:
      kind: the name of the operation in HLO, such as "all-reduce".
      axes: the mesh axes along which devices exchange numbers.
      count: how often it runs.
      bytes: the bytes of its arrays on one device, over all `count` runs. It is the size of the array before an
        all-reduce or a reduce-scatter, and after an all-gather.
      largest: the bytes of the largest single array.
      ways: the number of devices that exchange numbers with each other.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    bytes: int
    largest: int
    ways: int

    @property
    def sent(self) -> float:
        """The bytes that one device sends, if the devices form a ring: 2 (n-1)/n of an all-reduced array, (n-1)/n of an
        array that is gathered, scattered or transposed, and a permuted array once."""
        share = (self.ways - 1) / self.ways
        return self.bytes * {"all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}.get(
            self.kind, share
        )


def collectives(compiled: jax.stages.Compiled, mesh: Mesh) -> list[Collective]:
    """The collectives of a compiled program, by kind and mesh axes.

    A collective in the body of a loop counts once for every run of the body. The body of a loop whose length the
    compiler does not know, and each branch of a conditional, count once.

    Args:
      compiled: `jax.jit(f).lower(...).compile()`. Its arrays are on `mesh`.
      mesh: the mesh.

    Returns:
      A row for each kind and each set of axes, sorted by both. A program on one device has none.

    Raises:
      UserError: the program groups devices in a way that this function cannot read.

    Example:
        over = {row.axes: row.bytes for row in collectives(compiled, mesh) if row.kind == "all-reduce"}
    """
    bodies = _computations(compiled.as_text() or "")
    runs = _runs(bodies)
    found: dict[tuple[str, tuple[str, ...]], list[tuple[int, list[int], int]]] = defaultdict(list)
    for name, lines in bodies.items():
        for kind, sizes, text in _operations(lines, mesh.size):
            axes, ways = _axes(text, mesh)
            if ways > 1 and runs[name]:
                found[kind, axes].append((runs[name], sizes, ways))
    return [
        Collective(
            kind,
            axes,
            count=sum(times for times, _, _ in some),
            bytes=sum(times * sum(sizes) for times, sizes, _ in some),
            largest=max(max(sizes) for _, sizes, _ in some),
            ways=max(ways for _, _, ways in some),
        )
        for (kind, axes), some in sorted(found.items())
    ]


def _computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation of an HLO module. The entry is under "ENTRY"."""
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        if opens := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line):
            current = found.setdefault("ENTRY" if opens[1] else opens[2], [])
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    return found


_CALLED = re.compile(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


def _runs(bodies: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs in one call of the program."""
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, lines in bodies.items():
        for line in lines:
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line) if " while(" in line else None
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += re.findall(r"%?([\w.\-]+)", branches)
            for other in called:
                callers[other].append((name, int(trips[1]) if trips else 1))
    known = {"ENTRY": 1}

    def runs(name: str) -> int:
        if name not in known:
            known[name] = sum(times * runs(caller) for caller, times in callers[name])
        return known[name]

    return {name: runs(name) for name in bodies}


_OPERATION = re.compile(rf"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(KINDS)})(-start)?\((.*?)\)(, .*)$")
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)[a-z\d]*)\[([\d,]*)\]")


def _operations(lines: list[str], devices: int) -> Iterator[tuple[str, list[int], str]]:
    """(kind, the bytes of each of its arrays, the text of its attributes) of every collective of a computation."""
    for line in lines:
        if not (found := _OPERATION.match(line)):
            continue
        result, kind, begins, operands, attributes = found.groups()
        sizes = [
            math.prod(int(size) for size in shape.split(",") if size) * int(bits or 8) // 8
            for _, bits, shape in _SHAPE.findall(result)
        ]
        number = operands.count("%")
        if begins and len(sizes) > number:  # (operands, results, ...)
            sizes = sizes[number : 2 * number]
        if kind == "reduce-scatter":
            sizes = [size * _groups(attributes, devices).shape[1] for size in sizes]
        yield kind, sizes, attributes


_PAIRS = re.compile(r"source_target_pairs=\{((?:\{[\d,]*\},?)*)\}")
_LISTED = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_DEVICES = r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
_OF_MESH = re.compile(rf"replica_groups=mesh\[([^\]]*)\]{_DEVICES}\s*\{{([^}}]*)\}}")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _groups(attributes: str, devices: int) -> np.ndarray:
    """Device numbers, a row for each group of devices that exchange numbers with each other."""
    if found := _PAIRS.search(attributes):
        return np.array(_numbers(found[1])).reshape(-1, 2)
    if found := _LISTED.search(attributes):
        rows = [_numbers(row) for row in re.findall(r"\{([\d,]+)\}", found[1])]
        return np.array(rows or [range(devices)])
    if found := _IOTA.search(attributes):
        shape, sizes, order = (_numbers(part or "") for part in found.groups())
        return np.arange(math.prod(sizes)).reshape(sizes).transpose(order or None).reshape(shape)
    if found := _OF_MESH.search(attributes):  # mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a','b':(1)2}
        sizes = [int(size) for size in re.findall(r"=(\d+)", found[1])]
        names = re.findall(r"'([^']+)'", found[1])
        parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", found[4])
        order = np.arange(math.prod(sizes)).reshape(_numbers(found[2] or "") or -1)
        order = order.transpose(_numbers(found[3] or "") or None).reshape(-1)
        return order[_of_mesh(dict(zip(names, sizes, strict=True)), parts)]
    raise UserError(f"cannot read which devices exchange numbers in {attributes[:200]!r}")


def _of_mesh(sizes: dict[str, int], parts: list[tuple[str, str, str]]) -> np.ndarray:
    """The groups along some axes of the compiler's own mesh. `a:(m)k` is the part of size k, after m, of the axis a."""
    shape: list[int] = []
    along: list[int] = []
    for name, size in sizes.items():
        cut = sorted((int(before or 1), int(part or size)) for other, before, part in parts if other == name)
        done = 1
        for before, part in cut:
            shape.append(before // done)
            along.append(len(shape))
            shape.append(part)
            done = before * part
        shape.append(size // done)
    count = math.prod(shape[axis] for axis in along)
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return np.moveaxis(numbers, along, range(-len(along), 0)).reshape(-1, count)


def _axes(attributes: str, mesh: Mesh) -> tuple[tuple[str, ...], int]:
    """The mesh axes along which the devices of a group differ, and the number of devices in a group."""
    groups = _groups(attributes, mesh.size)
    places = np.stack(np.unravel_index(groups, mesh.devices.shape))  # [axis, group, device]
    differs = (places != places[..., :1]).any((1, 2))
    ways = groups.shape[1] if differs.any() else 1
    return tuple(name for name, varies in zip(mesh.axis_names, differs, strict=True) if varies), ways
