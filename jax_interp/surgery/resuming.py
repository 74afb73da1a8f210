"""Run a model from one of its blocks on, with a given residual stream. What lies before this block is not computed.

    logits, streams = block_inputs(model)(tokens)     the input of every block, [layer, batch, pos, d_model]
    resumed(model, 3, streams[3])(tokens)             the output of model(tokens), from block 3 on

A change at block 3 leaves everything before block 3 as it was. A sweep over changes therefore runs the model once, and
resumes it for each change. The layer is data: it can be swept, and one program serves all layers. With `fixed=True` the
layer is part of the program instead. Then gradients in reverse mode exist, and the values of the blocks that are run
can be read.

Both functions work on every model that runs its blocks by `run_blocks`, stacked or not, under surgery or not.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jax_interp.core.errors import UserError
from jax_interp.surgery.address import AddressError
from jax_interp.surgery.body import BodyValues, CarryError
from jax_interp.surgery.contract import Model
from jax_interp.surgery.place import Place
from jax_interp.surgery.region import RegionError, check_known, index
from jax_interp.surgery.site import Site
from jax_interp.surgery.stack import Segment, depth_of, iter_segments
from jax_interp.surgery.taps import BlockInputs, Edit, Resolved, Resume, Tapped
from jax_interp.surgery.verbs import without_reads


def block_inputs(model: Model) -> Callable[..., tuple[Any, PyTree]]:
    """The input of every block: `block_inputs(model)(*args)`.

    Args:
      model: a model that runs its blocks by `run_blocks`, under surgery or not. Its readings are left out.

    Returns:
      A function of the model's arguments. It returns `(output, inputs)`. The inputs of the blocks have a leading layer
      axis: `[layer, batch, pos, d_model]` for a decoder.

    Raises:
      UserError: the model has no blocks, or does not run them by `run_blocks`.
    """

    def run(*args: Any, **kwargs: Any) -> tuple[Any, PyTree]:
        return without_reads(model)(*args, taps=(BlockInputs(),), **kwargs)

    return run


def resumed(model: Model, layer: Any, stream: PyTree, *, fixed: bool = False) -> Tapped:
    """The model from one block on: the blocks before `layer` are not run, and block `layer` gets `stream` as input.

    The parts outside the blocks run as usual. Edits that the model has already act at the blocks that are run; in the
    earlier blocks they have acted on `stream`, if it comes from `block_inputs` of the same model.

    Args:
      model: a model that runs its blocks by `run_blocks`, under surgery or not.
      layer: the first block that is run. It may be traced. The number of layers means that no block is run.
      stream: the input of this block.
      fixed: whether the layer is part of the program. It is then an integer, and each layer compiles a program.

    Returns:
      A model. If the layer is data, it takes no gradient in reverse mode with respect to what enters the blocks,
      because the number of blocks that are run is data, and a cache is read and not extended. If the layer is fixed, it
      takes all gradients and no cache.

    Raises:
      RegionError: the model has no such layer. If the layer is traced, the output is NaN.
      AddressError: a value of the blocks is read, and the layer is data; or the value is in a block that is not run.
      CarryError: an edit carries a value from block to block.
      UserError: the model is resumed twice, or it does not run its blocks by `run_blocks`.

    Example:
        _, streams = block_inputs(model)(corrupted)
        patch = lambda layer, pos: at("blocks.resid_pre", Each(Replace(clean)), layer=layer, pos=pos)
        run = lambda layer, pos: edit(resumed(model, layer, streams[layer]), patch(layer, pos))(corrupted)
        jax.vmap(run, in_axes=(None, 0))(layer, jnp.arange(16))
    """
    if fixed:
        return Tapped(model, (Resume(None, stream, _fixed(layer, depth_of(model))),))
    chosen = index(layer)
    if not isinstance(chosen, jax.Array) or chosen.ndim or chosen.dtype == bool:
        raise RegionError(f"a model is resumed at one layer, got {layer!r}")
    return Tapped(model, (Resume(chosen, stream),))


def _fixed(layer: Any, depth: int) -> int:
    """The number of a layer that is part of the program."""
    try:
        number = operator.index(layer)
    except Exception as error:  # a traced integer raises an error of JAX
        raise RegionError(f"with fixed=True the layer is a plain integer, got {layer!r}") from error
    check_known(np.asarray(number, np.int32), (depth, depth + 1), "the layer of `resumed`")  # type: ignore[arg-type]
    return number + depth if number < 0 else number


def entered(blocks: Any, x: PyTree, site: Site, state: Sequence[PyTree] | None, resume: Resume) -> PyTree:
    """The input of the first block of a model that is resumed at a fixed layer. `x` only gives the type."""
    if state is not None:
        raise UserError("a model that is resumed at a fixed layer takes no cache: leave out cache= or fixed=True")
    _check_types(x, resume.stream)
    valid = _later_edits_act(site.trace, resume.fixed, depth_of(blocks))
    return resume.stream if valid is True else _nan_unless(valid, resume.stream)


def run_resumed(
    blocks: Any, x: PyTree, site: Site, args: tuple, state: Sequence[PyTree] | None, resume: Resume
) -> PyTree:
    """What `run_blocks` does for a resumed model. `x`, the usual input of the first block, only gives the type."""
    trace, depth, stream = site.trace, depth_of(blocks), resume.stream
    assert resume.layer is not None
    if any(r.inside for r in trace.reads):
        raise AddressError("a resumed model runs some of its blocks, so no value of the blocks can be read from it")
    _check_types(x, stream)
    bounds, what = (depth, depth + 1), "the layer of `resumed`"
    trace.note_index(resume.layer, bounds, what)
    check_known(resume.layer, bounds, what)
    start = jnp.where(resume.layer < 0, resume.layer + depth, resume.layer)
    valid = (start >= 0) & (start <= depth) & _later_edits_act(trace, resume.layer, depth)
    x = stream
    for i, segment in enumerate(iter_segments(blocks)):
        entry = None if state is None else state[i]
        x = (_loop if segment.stacked else _branch)(segment, x, site, args, entry, start)
    return _nan_unless(valid, x)


def _nan_unless(valid: Any, x: PyTree) -> PyTree:
    is_float = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact)
    return jax.tree.map(lambda leaf: jnp.where(valid, leaf, jnp.nan) if is_float(leaf) else leaf, x)


def _loop(segment: Segment, x: PyTree, site: Site, args: tuple, state: PyTree | None, start: jax.Array) -> PyTree:
    """Run the layers of a stack from `start` on. The loop indexes the parameters, so no copy of a part is made."""
    span = segment.layers

    def body(layer: jax.Array, x: PyTree) -> PyTree:
        block, entry = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer - span.start, keepdims=False), (segment.block, state)
        )
        return _block(block, x, site, args, entry, Place(layer, span, tuple(span)))

    first = jnp.clip(start, span.start, span.stop).astype(jnp.int32)
    return jax.lax.fori_loop(first, jnp.int32(span.stop), body, x)


def _branch(segment: Segment, x: PyTree, site: Site, args: tuple, state: PyTree | None, start: jax.Array) -> PyTree:
    """Run one unrolled block, if it does not lie before `start`."""
    layer = segment.layers.start
    place = Place(layer, segment.layers, (layer,))
    return jax.lax.cond(start <= layer, lambda x: _block(segment.block, x, site, args, state, place), lambda x: x, x)


def _block(block: Any, x: PyTree, site: Site, args: tuple, state: PyTree | None, place: Place) -> PyTree:
    values = BodyValues(carried=dict(site.values.carried))
    scope = site.in_block(place, values)
    x = block(x, scope, *args) if state is None else block(x, scope, *args, state=state)[0]
    if values.made_here:
        raise CarryError(
            f"the carried values {sorted(values.made_here)} are made in blocks that a resumed model may not run"
        )
    return x


def _later_edits_act(trace: Any, first: Any, depth: int) -> Any:
    """Whether the edits around the resumed model act only in blocks that are run. The layers may be traced."""
    start = first if isinstance(first, int) else jnp.where(first < 0, first + depth, first)
    valid = True
    for r in trace.taps:
        if not isinstance(r.tap, Edit) or not r.inside or r.index < trace.resumed_at:
            continue
        layer = r.tap.layer
        _refuse_earlier(r, first, depth)
        if layer is None:
            valid &= start <= min(r.layers)
        elif layer.dtype == bool:
            valid &= ~jnp.any(layer & (jnp.arange(depth) < start))
        else:
            valid &= jnp.all(jnp.where(layer < 0, layer + depth, layer) >= start)
    return valid


def _refuse_earlier(r: Resolved, start: Any, depth: int) -> None:
    """Raise `RegionError` if it is known that an edit acts before the layer at which the model is resumed."""
    layer = np.asarray(min(r.layers or (0,)), np.int32) if r.tap.layer is None else r.tap.layer
    if isinstance(start, jax.core.Tracer) or isinstance(layer, jax.core.Tracer):
        return
    acts = np.flatnonzero(layer) if layer.dtype == bool else np.asarray(layer).reshape(-1) % depth
    first = int(start) if int(start) >= 0 else int(start) + depth
    if (acts < first).any():
        raise RegionError(
            f"the edit at {r.tap.address!r} acts before layer {first}, at which the model is resumed: it would "
            "have no effect"
        )


def _check_types(x: PyTree, stream: PyTree) -> None:
    typed = lambda tree: jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)
    if (want := typed(x)) != (got := typed(stream)):
        raise UserError(f"the input of a block has the type {want}, and the model is resumed with {got}")
