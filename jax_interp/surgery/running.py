"""Running the blocks of a model: blocks of their own one after the other, a `Stack` by `lax.scan`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_interp.surgery.site import Here, Site, room
from jax_interp.surgery.stack import Segment, index_layer, iter_segments
from jax_interp.surgery.taps import Each, Edit


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
    trace, states = site._trace, []
    last = trace.enter_blocks()
    for i, segment in enumerate(iter_segments(blocks)):
        entry = None if state is None else state[i]
        if last is None or segment.layers.start <= last:
            if segment.stacked:
                layers = segment.layers if last is None else segment.layers[: last + 1 - segment.layers.start]
                x, entry = _scan(segment, x, layers, trace, args, entry, remat)
            else:
                x, entry = _apply(segment.block, x, segment.layers.start, trace, args, entry, remat)
        states.append(entry)
    return x if state is None else (x, states)


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


def _scan(stack: Segment, x, span, trace, args, state, remat):
    """Run the layers `span` of a stack by one `lax.scan`; what is read of them is collected in its carry."""
    kept = _room_for_readings(stack, x, span, trace, args, state)
    each = {}  # values for each layer of this segment travel through the scan with the parameters
    for r in trace.taps:
        if isinstance(r.tap, Edit) and isinstance(r.tap.fn, Each) and r.layers and set(span) <= set(r.layers):
            rows = slice(r.layers.index(span[0]), r.layers.index(span[-1]) + 1)
            if rows.stop - rows.start == len(span):
                each[r.index] = [leaf[rows] for leaf in r.tap.fn.values()]
    whole = len(span) == len(stack.layers)
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

    jax.eval_shape(lambda block, x, state: look(index_layer(block, 0), x, index_layer(state, 0)), stack.block, x, state)
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
