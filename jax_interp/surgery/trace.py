"""`Trace`: the state of one forward pass. It exists while JAX traces (or runs) a model once.

It never keeps a traced value after the scope of this value has ended. A value that is read inside a block leaves the
block as an output, and is added to the trace afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jax_interp.core.errors import UserError
from jax_interp.surgery.activations import Activations
from jax_interp.surgery.address import AddressError, suggest
from jax_interp.surgery.region import Bounds, Chosen, Positions
from jax_interp.surgery.taps import BlockInputs, Edit, IndexBounds, Read, Resolved, Resume, Survey, Tap, resolve


@dataclasses.dataclass(frozen=True)
class NamedValue:
    """The type of a named value, and the names of its axes."""

    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str, ...]
    sharding: Any = None


class Trace:
    """The taps of one forward pass, the named values so far, and the readings so far."""

    def __init__(self, taps: tuple[Tap, ...], depth: int, positions: Positions):
        self.depth, self.positions = depth, positions
        self.taps = resolve(taps, depth)
        self.survey = any(isinstance(tap, Survey) for tap in taps)
        self.asks_for_bounds = any(isinstance(tap, IndexBounds) for tap in taps)
        self.index_bounds: list[tuple[Chosen, Bounds, str]] = []
        self.asks_for_block_inputs = any(isinstance(tap, BlockInputs) for tap in taps)
        self.block_inputs: Any = None
        self.resume, self.resumed_at = _resume(taps)
        self.reads = [r for r in self.taps if isinstance(r.tap, Read)]
        self.wants_output = not self.reads or self.reads[-1].tap.output  # the outermost `read` decides
        self.named: dict[str, dict[int | None, NamedValue]] = {}  # name -> layer (None: outside the blocks) -> value
        self._offered: set[tuple[str, bool]] = set()  # names that a model makes only on request
        self._readings: dict[int, list[tuple[jax.Array, bool]]] = {r.index: [] for r in self.reads}
        self._met: set[int] = set()  # indices of the taps whose value exists
        self._clock = 0
        # When a value was named first, by name and layer: a value made on request exists at some layers only.
        self._times: dict[tuple[str, int | None], int] = {}
        self._blocks_begin = 0
        self._stopped_after: int | None = None
        self._entered_blocks = False

    # ---- while the model runs -------------------------------------------------------------------------------

    def acting(self, name: str, inside: bool, since: int) -> list[Resolved]:
        """The taps at this name, innermost first. Taps with an index below `since` are left out."""
        return [r for r in self.taps if r.name == name and r.inside == inside and r.index >= since]

    def meet(self, r: Resolved) -> None:
        """Note that the value of this tap exists."""
        self._met.add(r.index)

    def note_index(self, index: Chosen, bounds: Bounds, what: str) -> None:
        """Note an index of an edit, its bounds (below, above), and its name in messages."""
        if self.asks_for_bounds:
            self.index_bounds.append((index, bounds, what))

    def offer(self, names: Iterable[str], inside: bool) -> None:
        """Note names that the model makes only on request, inside or outside the blocks."""
        self._offered.update((name, inside) for name in names)

    def add_reading(self, r: Resolved, value: jax.Array, *, has_layer_axis: bool) -> None:
        """Add a part of a reading: the value at one layer or, with a layer axis, the values at several layers."""
        self._readings[r.index].append((value, has_layer_axis))

    def type_of(self, r: Resolved, layer: int) -> NamedValue | None:
        """The type of the value of a tap at one layer; None if the value does not exist."""
        return self.named.get(r.name, {}).get(layer) if r.index in self._met else None

    def record(self, name: str, layers: tuple[int, ...] | tuple[None], value: jax.Array, axes: tuple[str, ...]) -> None:
        """Note that a value called `name` exists at `layers`; (None,) means outside the blocks."""
        kind = jax.typeof(value)
        if len(axes) != len(kind.shape):
            raise ValueError(
                f"the model gives {name!r} {len(axes)} axis names ({' '.join(axes)}), but its shape is {kind.shape}"
            )
        here = NamedValue(kind.shape, kind.dtype, axes, kind.sharding)
        known = self.named.setdefault(name, {})
        inside = layers != (None,)
        if not inside and None in known:
            raise ValueError(f"the model names two values {name!r}: outside the blocks every name must be unique")
        self._clock += 1
        for layer in layers:
            self._times.setdefault((name, layer), self._clock)
            known[layer] = here

    def enter_blocks(self) -> int | None:
        """The last layer that has to be run for readings without output; None if the whole model is needed."""
        self._blocks_begin, self._entered_blocks = self._clock, True
        outstanding = [r for r in self.reads if not r.inside and not self._readings[r.index]]
        if self.survey or self.wants_output or outstanding:  # an outstanding value may come after the blocks
            return None
        self._stopped_after = max((r.layers[-1] for r in self.reads if r.layers is not None), default=-1)
        return self._stopped_after

    # ---- at the end -----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `AddressError` for a tap whose value does not exist, or an edit that no reading depends on."""
        if not self._entered_blocks and (self.resume is not None or self.asks_for_block_inputs):
            raise UserError("this model does not run its blocks by `run_blocks`, so it cannot be resumed at a block")
        for r in self.taps:
            known, wanted = self.named.get(r.name, {}), self._wanted(r)
            if not wanted:
                continue
            missing = [layer for layer in wanted if layer not in known]
            if missing and self._comes_after_all_reads(r):
                self._refuse_unconsumed(r)
            if missing and r.inside and set(known) - {None}:
                first, last = missing[0], self._stopped_after
                if first is not None and last is not None and first > last:
                    end = "" if r.address.layers == "" else f"edit no block after block {last}, or "
                    raise AddressError(
                        f"{r.tap.address!r} includes block {first}, but with output=False no block is run after "
                        f"block {last}, the last block that is read: {end}leave out output=False"
                    )
                have = ", ".join(map(str, sorted(layer for layer in known if layer is not None)))
                raise AddressError(f"{r.tap.address!r}: {r.name!r} exists in blocks {have} and not in {missing[0]}.")
            if missing:
                exist = [_spelled(name, layer is not None) for name, at in self.named.items() for layer in at]
                exist += [_spelled(name, inside) for name, inside in self._offered]
                asked = _spelled(r.name, r.inside)
                raise AddressError(f"{r.tap.address!r} names no value of this model.{suggest(asked, exist)}")
            if r.index not in self._met:
                raise AddressError(
                    f"{r.tap.address!r} is made by an outer surgery, which acts later: "
                    f"{'read' if isinstance(r.tap, Read) else 'edit'} the value in a later surgery, around that one"
                )
        if not self.wants_output:
            latest = max(self._when(r, last=True) for r in self.reads)
            for r in self.taps:
                if isinstance(r.tap, Edit) and self._wanted(r) and self._when(r, last=False) > latest:
                    self._refuse_unconsumed(r)

    def _wanted(self, r: Resolved) -> tuple[int, ...] | tuple[None]:
        """The layers of a tap at which its value must exist. A model that is resumed at a fixed layer leaves out the
        layers before it, for the taps inside and for edits whose layer is data."""
        if r.layers is None:
            return (None,)
        first = self.resume.fixed if self.resume is not None and self.resume.fixed is not None else 0
        anywhere = r.index < self.resumed_at or getattr(r.tap, "layer", None) is not None
        return tuple(layer for layer in r.layers if layer >= first or not anywhere)

    def _comes_after_all_reads(self, r: Resolved) -> bool:
        """Whether this is an edit in blocks that were not run, because all readings come before them."""
        stopped = self._stopped_after is not None and r.layers is not None and r.layers[0] > self._stopped_after
        return stopped and isinstance(r.tap, Edit)

    def _refuse_unconsumed(self, r: Resolved) -> None:
        raise AddressError(
            f"the edit at {r.tap.address!r} comes after everything that is read, and the output is not wanted: "
            "nothing depends on it. Read a later value, or leave out output=False"
        )

    def collect(self) -> Activations:
        """The readings, assembled from their parts."""
        arrays = {}
        for r in self.reads:
            parts = self._readings[r.index]
            first, has_layer_axis = parts[0]
            if r.address.is_single:
                array = first[0] if has_layer_axis else first
            elif len(parts) == 1 and has_layer_axis:
                array = first
            elif any(stacked for _, stacked in parts):
                array = jnp.concatenate([rows if stacked else rows[None] for rows, stacked in parts])
            else:
                array = jnp.stack([rows for rows, _ in parts])
            arrays[str(r.address)] = array
        return Activations(arrays, self.depth)

    def surveyed(self) -> dict[str, NamedValue]:
        """Every named value by its address, in the order of the forward pass."""
        order: list[tuple[Any, str, int | None]] = []
        for name, layers in self.named.items():
            for layer in layers:
                time = self._times[name, layer]
                place = (0 if time <= self._blocks_begin else 2, 0) if layer is None else (1, layer)
                order.append(((*place, time), name, layer))
        order.sort(key=lambda entry: entry[0])
        found = (
            (name if layer is None else f"blocks.{layer}.{name}", self.named[name][layer]) for _, name, layer in order
        )
        return dict(found)

    def _when(self, r: Resolved, last: bool) -> tuple[int, int, int, int]:
        if r.layers is None:
            time = self._times[r.name, None]
            return (0 if time <= self._blocks_begin else 2, 0, time, r.index)
        layers = [layer for layer in self._wanted(r) if layer is not None]
        layer = layers[-1 if last else 0]
        return (1, layer, self._times[r.name, layer], r.index)


def _resume(taps: tuple[Tap, ...]) -> tuple[Resume | None, int]:
    """The resumption of this forward pass, and the number of edits and readings that are inside of it."""
    found = [i for i, tap in enumerate(taps) if isinstance(tap, Resume)]
    if len(found) > 1:
        raise UserError("the model is resumed twice: resume the model itself")
    if not found:
        return None, 0
    return taps[found[0]], sum(isinstance(tap, (Edit, Read)) for tap in taps[: found[0]])  # type: ignore[return-value]


def _spelled(name: str, inside: bool) -> str:
    return f"blocks.*.{name}" if inside else name
