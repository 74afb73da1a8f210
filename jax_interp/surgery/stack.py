"""Segments: how a model's blocks are laid out, and how they are run.

A model's `blocks` are a list of segments. A segment is a block, which runs as is, or a `Stack`: one block
whose leaves carry a leading layer axis, run by `lax.scan`, so that compile time and dispatch do not grow with
depth. `replan` turns one layout into another; addresses, values and bits stay the same.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jax_interp.surgery.address import Address, AddressError
from jax_interp.surgery.site import Here, Site, room
from jax_interp.surgery.taps import Each, Edit, Tapped


class Stack(nnx.Module):
    """`depth` blocks of one shape, held as a single block whose leaves have a leading layer axis."""

    def __init__(self, block: Any):
        self.block = nnx.data(block)  # a block need not be an nnx module

    @property
    def depth(self) -> int:
        return jax.tree.leaves(self.block)[0].shape[0]

    @classmethod
    def of(cls, blocks: Sequence[Any]) -> Stack:
        """Stack blocks of the same structure. Raises ValueError where they differ."""
        if any(_kind(block) != _kind(blocks[0]) for block in blocks):
            raise ValueError("only blocks of one structure, with leaves of one shape and dtype, can be stacked")
        return cls(jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks))

    def unstack(self) -> list[Any]:
        return [_layer(self.block, i) for i in range(self.depth)]


def depth_of(blocks: Iterable[Any]) -> int:
    """The number of layers in a list of segments."""
    return sum(segment.depth if isinstance(segment, Stack) else 1 for segment in blocks)


def run_blocks(
    blocks: Iterable[Any],
    x: Any,
    site: Site,
    *args: Any,
    state: Sequence[Any] | None = None,
    remat: Callable | bool | None = None,
) -> Any:
    """Apply the segments in order: `x = block(x, site, *args)` for each block.

    With `state`, one entry per segment (leaves `[layer, ...]` for a `Stack`), each block is called with its part as
    `state=` and returns `(x, state)`; the result is then `(x, states)`. `remat` recomputes blocks in the backward
    pass: True keeps nothing, a policy keeps what it says, by the names that sites give
    (`jax.checkpoint_policies.save_only_these_names("attn_out", "mlp.post")`).

    Where a reading does not want the model's output, blocks after the last one it depends on are not run, and the
    returned `x` is the value there.
    """
    trace, first, states = site._trace, 0, []
    last = trace.enter_blocks()
    for i, segment in enumerate(blocks):
        depth = segment.depth if isinstance(segment, Stack) else 1
        entry = None if state is None else state[i]
        if last is not None and first > last:
            states.append(entry)
        elif isinstance(segment, Stack):
            run = depth if last is None else min(depth, last + 1 - first)
            x, entry = _scan(segment, x, range(first, first + run), trace, args, entry, remat)
            states.append(entry)
        else:
            x, entry = _apply(segment, x, first, trace, args, entry, remat)
            states.append(entry)
        first += depth
    return x if state is None else (x, states)


def replan(model: Any, unroll: str | int | Iterable = ()) -> Any:
    """The same model with the layers in `unroll` as blocks of their own and every other stretch scanned.

        replan(model)                 everything scanned
        replan(model, "*")            everything unrolled
        replan(model, "4:6")          layers 4 and 5 unrolled, the rest scanned; a list of such is fine too

    Neighbouring blocks that differ in structure cannot be scanned together and start a new stretch. Works on any
    model with a `blocks` attribute, under a nest of surgeries too. Costs a copy of the blocks that change layout.
    """
    if isinstance(model, Tapped):
        return dataclasses.replace(model, model=replan(model.model, unroll))
    if not hasattr(model, "blocks"):
        raise TypeError(f"replan needs a model with an attribute `blocks`, {type(model).__name__} has none")
    depth = depth_of(model.blocks)
    apart = _layers(unroll, depth)
    blocks = [b for s in model.blocks for b in (s.unstack() if isinstance(s, Stack) else [s])]
    segments: list[Any] = []
    stretch: list[Any] = []

    def end_stretch():
        if stretch:
            segments.append(Stack.of(stretch))
            stretch.clear()

    for layer, block in enumerate(blocks):
        if layer in apart or (stretch and _kind(stretch[-1]) != _kind(block)):
            end_stretch()
        if layer in apart:
            segments.append(block)
        else:
            stretch.append(block)
    end_stretch()
    if dataclasses.is_dataclass(model) and not isinstance(model, type):
        return dataclasses.replace(model, blocks=segments)
    copy = jax.tree.map(lambda leaf: leaf, model)
    copy.blocks = nnx.List(segments)
    return copy


def _layers(unroll: Any, depth: int) -> set[int]:
    if not isinstance(unroll, str) and isinstance(unroll, Iterable):
        return {layer for part in unroll for layer in _layers(part, depth)}
    text = unroll if isinstance(unroll, (str, bool)) else operator.index(unroll)
    address = Address.parse(f"blocks.{text}.it")
    if not address.layers or address.name != "it":
        raise AddressError(f"unroll={unroll!r} is no layer: give a number, a slice such as '2:4', '*', or several")
    return set(address.resolve(depth) or ())


def _layer(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], tree)


def _kind(block: Any) -> Any:
    leaves, structure = jax.tree.flatten(block)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _apply(block, x, layer, trace, args, state, remat):
    """Run one block as is. Its readings leave it as an output, so that `jax.checkpoint` can wrap it."""

    def step(block, x, state):
        site = Site(trace, here=Here(layer, range(layer, layer + 1), (layer,)))
        out = block(x, site, *args) if state is None else block(x, site, *args, state=state)
        x, state = out if state is not None else (out, None)
        return x, state, site._kept

    x, state, kept = _remat(step, remat, prevent_cse=True)(block, x, state)
    for i, value in kept.items():
        trace.pieces[i].append((value, False))
    return x, state


def _scan(stack, x, span, trace, args, state, remat):
    """Run the layers `span` of a stack by one `lax.scan`; what is read of them is collected in its carry."""
    kept = _room_for_readings(stack, x, span, trace, args, state)
    each = {}  # values for each layer of this segment travel through the scan with the parameters
    for r in trace.taps:
        if isinstance(r.tap, Edit) and isinstance(r.tap.fn, Each) and r.layers and set(span) <= set(r.layers):
            rows = slice(r.layers.index(span[0]), r.layers.index(span[-1]) + 1)
            if rows.stop - rows.start == len(span):
                each[r.index] = [leaf[rows] for leaf in r.tap.fn.values()]
    whole = len(span) == stack.depth
    # A scan over part of the parameters would copy that part; picking a layer inside the body does not.
    blocks = stack.block if whole else None
    states = state if whole else jax.tree.map(lambda leaf: leaf[: len(span)], state)

    def body(carry, xs):
        x, kept = carry
        layer, block, state, each = xs
        if block is None:
            block = jax.tree.map(
                lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer - span.start, keepdims=False), stack.block
            )
        site = Site(trace, here=Here(layer, span, tuple(span), each), kept=dict(kept))
        out = block(x, site, *args) if state is None else block(x, site, *args, state=state)
        x, state = out if state is not None else (out, None)
        return (x, {i: site._kept[i] for i in kept}), state

    layers = jnp.arange(span.start, span.stop, dtype=jnp.int32)
    (x, kept), states = jax.lax.scan(_remat(body, remat, prevent_cse=False), (x, kept), (layers, blocks, states, each))
    for i, rows in kept.items():
        trace.pieces[i].append((rows, True))
    if state is not None and not whole:
        states = jax.tree.map(lambda old, new: old.at[: len(span)].set(new), state, states)
    return x, states


def _room_for_readings(stack, x, span, trace, args, state) -> dict[int, Any]:
    """An empty buffer for each reading inside these layers. The block is shape-evaluated once to learn its type."""
    reads = [r for r in trace.reads if set(span).intersection(r.layers or ())]
    if not reads:
        return {}

    def look(block, x, state):
        site = Site(trace, here=Here(jnp.int32(span[0]), span, tuple(span)), looking=True)
        return block(x, site, *args) if state is None else block(x, site, *args, state=state)

    jax.eval_shape(lambda block, x, state: look(_layer(block, 0), x, _layer(state, 0)), stack.block, x, state)
    kept = {}
    for r in reads:
        wanted = [layer for layer in span if layer in r.layers]
        value = trace.named.get(r.name, {}).get(wanted[0])
        if value is not None and r.index in trace.met:  # what is missing is reported at the end
            kept[r.index] = room(value, len(wanted))
    return kept


def _remat(fn, remat, prevent_cse):
    if remat is None or remat is False:
        return fn
    return jax.checkpoint(fn, policy=None if remat is True else remat, prevent_cse=prevent_cse)
