"""Run the blocks of a model: call each unrolled block, and run each `Stack` by one `lax.scan`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jax_interp.surgery.body import BodyValues, zeros_like_type
from jax_interp.surgery.contract import Block
from jax_interp.surgery.place import Place
from jax_interp.surgery.resuming import entered, run_resumed
from jax_interp.surgery.site import Site
from jax_interp.surgery.stack import Segment, index_layer, iter_segments
from jax_interp.surgery.taps import Each, Edit

Remat = Callable[..., Any] | bool | None


def run_blocks(
    blocks: Iterable[Block],
    x: PyTree,
    site: Site,
    *args: Any,
    state: Sequence[PyTree] | None = None,
    remat: Remat = None,
) -> Any:
    """Apply the segments in order: `x = block(x, site, *args)` for each block.

    Args:
      blocks: the model's segments.
      x: the input of the first block.
      site: the root scope, from `Site.open`.
      args: further arguments of every block.
      state: one entry per segment (a KV cache, for example), with leaves `[layer, ...]` for a `Stack`. Each block gets
        its part as `state=` and returns `(x, state)`.
      remat: what the backward pass recomputes. True: everything except the inputs of the blocks. A policy: everything
        except the names that it saves (`jax.checkpoint_policies.save_only_these_names("attn_out", "mlp.post")`).

    Returns:
      The output of the last block; with `state`, `(x, states)`. Under `read(..., output=False)` the blocks after the
      last block that is read are not run, and `x` is the output of the last block that was run.
    """
    states, last = [], site.trace.enter_blocks()
    resume, first = site.trace.resume, 0
    if resume is not None and resume.fixed is None:
        x = run_resumed(blocks, x, site, args, state, resume)
        return x if state is None else (x, state)
    if resume is not None and resume.fixed is not None:
        x, first = entered(blocks, x, site, state, resume), resume.fixed
    inputs = []
    for i, segment in enumerate(iter_segments(blocks)):
        entry = None if state is None else state[i]
        stop = segment.layers.stop if last is None else min(segment.layers.stop, last + 1)
        layers = range(max(segment.layers.start, first), stop)
        if layers:
            if segment.stacked:
                x, entry, entering = _scan(segment, x, layers, site, args, entry, remat)
            else:
                entering = jax.tree.map(lambda leaf: leaf[None], x)
                x, entry = _apply(segment, x, site, args, entry, remat)
            inputs.append(entering)
        states.append(entry)
    if site.trace.asks_for_block_inputs and inputs and resume is None:
        site.trace.block_inputs = jax.tree.map(lambda *parts: jnp.concatenate(parts), *inputs)
    return x if state is None else (x, states)


def _call(block: Block, x: PyTree, site: Site, args: tuple, state: PyTree | None) -> tuple[PyTree, PyTree | None]:
    return (block(x, site, *args), None) if state is None else block(x, site, *args, state=state)


def _apply(segment: Segment, x: PyTree, site: Site, args: tuple, state: PyTree | None, remat: Remat):
    """Run one unrolled block. Readings and carried values are inputs and outputs, so `jax.checkpoint` can wrap it."""
    layer, trace = segment.layers.start, site.trace
    place = Place(layer, segment.layers, (layer,))

    def step(block, x, state, carried):
        values = BodyValues(carried=dict(carried))
        x, state = _call(block, x, site.in_block(place, values), args, state)
        return x, state, values.readings, values.carried

    step = _remat(step, remat, prevent_cse=True)
    x, state, readings, carried = step(segment.block, x, state, site.values.carried)
    site.values.carried = carried
    for r in trace.reads:
        if r.index in readings:
            trace.add_reading(r, readings[r.index], has_layer_axis=False)
    return x, state


def _scan(segment: Segment, x: PyTree, span: range, site: Site, args: tuple, state: PyTree | None, remat: Remat):
    """Run the layers `span` of a stack by one `lax.scan`. Readings and carried values are part of the scan's carry."""
    trace, entering = site.trace, _values_of_scan(segment, x, span, site, args, state)
    each = {}  # values for each layer of this segment travel through the scan with the parameters
    for r in trace.taps:
        if isinstance(r.tap, Edit) and isinstance(r.tap.fn, Each) and r.layers and set(span) <= set(r.layers):
            rows = slice(r.layers.index(span[0]), r.layers.index(span[-1]) + 1)
            if rows.stop - rows.start == len(span):
                each[r.index] = [leaf[rows] for leaf in r.tap.fn.values()]
    whole = len(span) == len(segment.layers)
    # A scan over a slice of the parameters would copy the slice. Indexing a layer inside the body does not.
    blocks = segment.block if whole else None
    states = state if whole else jax.tree.map(lambda leaf: leaf[: len(span)], state)

    def body(carry, xs):
        x, readings, carried = carry
        layer, block, state, each = xs
        if block is None:
            block = jax.tree.map(
                lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer - segment.layers.start, keepdims=False),
                segment.block,
            )
        values = entering.copy(readings=readings, carried=carried)
        place = Place(layer, span, tuple(span), each)
        before = x if trace.asks_for_block_inputs else None
        x, state = _call(block, x, site.in_block(place, values), args, state)
        kept = {i: values.readings[i] for i in readings}, {k: values.carried[k] for k in carried}
        return (x, *kept), (state, before)

    layers = jnp.arange(span.start, span.stop, dtype=jnp.int32)
    carry = (x, entering.readings, entering.carried)
    (x, readings, carried), (states, inputs) = jax.lax.scan(
        _remat(body, remat, prevent_cse=False), carry, (layers, blocks, states, each)
    )
    site.values.carried = carried
    for r in trace.reads:
        if r.index in readings:
            trace.add_reading(r, readings[r.index], has_layer_axis=True)
    if state is not None and not whole:
        states = jax.tree.map(lambda old, new: old.at[: len(span)].set(new), state, states)
    return x, states, inputs


def _values_of_scan(
    segment: Segment, x: PyTree, span: range, site: Site, args: tuple, state: PyTree | None
) -> BodyValues:
    """The initial values of a scan: a buffer for each reading in these layers, and the carried values.

    Carried values that the layers of the scan make start as zeros. Their types come from `jax.eval_shape` of the block.
    """
    trace, before = site.trace, site.values
    reads = [r for r in trace.reads if set(span).intersection(r.layers or ())]
    makers = [r for r in trace.taps if isinstance(r.tap, Edit) and r.is_scoped and set(span) & set(r.layers or ())]
    if not reads and not makers:
        return BodyValues(carried=before.carried)
    place, first_made = Place(jnp.int32(span[0]), span, tuple(span)), {}

    def types(block, x, state, carried):
        values = BodyValues(carried=dict(carried), finding_types=True)
        _call(index_layer(block, 0), x, site.in_block(place, values), args, index_layer(state, 0))
        first_made.update(values.made_here)
        return values.carried

    carried = before.carried
    while (
        True
    ):  # an edit may need the type of a carried value that is found only in this pass: repeat until no new type
        known, carried = set(carried), jax.eval_shape(types, segment.block, x, state, carried)
        if known == set(carried):
            break
    readings = {}
    for r in reads:
        wanted = [layer for layer in span if layer in (r.layers or ())]
        if (kind := trace.type_of(r, wanted[0])) is not None:  # `Trace.check` reports a missing value later
            readings[r.index] = zeros_like_type(kind, len(wanted))
    new = {name: kind for name, kind in carried.items() if name not in before.carried}
    carried = before.carried | {name: jax.tree.map(zeros_like_type, kind) for name, kind in new.items()}
    return BodyValues(readings, carried, {name: first_made[name] for name in new})


def _remat(fn: Callable[..., Any], remat: Remat, *, prevent_cse: bool) -> Callable[..., Any]:
    if remat is None or remat is False:
        return fn
    return jax.checkpoint(fn, policy=None if remat is True else remat, prevent_cse=prevent_cse)
