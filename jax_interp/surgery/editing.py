"""Apply one edit to one value: call the edit, check its result, and keep the result only inside the region."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array

from jax_interp.core.errors import UserError
from jax_interp.core.layer import out_sharding_like
from jax_interp.surgery import region as regions
from jax_interp.surgery.contract import TokenEdit
from jax_interp.surgery.taps import Each, Resolved
from jax_interp.surgery.trace import Trace
from jax_interp.surgery.value_tokens import ValueTokens

if TYPE_CHECKING:
    from jax_interp.surgery.site import Site


class EditError(UserError):
    """The result of an edit cannot replace the value."""


def apply_edit(
    fn: Callable[..., Any], r: Resolved, x: Array, axes: tuple[str, ...], trace: Trace, scope: Site | None
) -> Array:
    """The edited value. Outside the region of the edit the value keeps its bits.

    Args:
      fn: the callable of the edit at this layer.
      r: the tap of the edit.
      x: the value.
      axes: the names of its axes.
      trace: the state of this forward pass.
      scope: the site of a scoped edit; None for a plain edit.
    """
    what = f"the value at {r.tap.address!r}"
    try:
        if isinstance(fn, TokenEdit):
            region = r.tap.region
            y = fn(x, ValueTokens(axes, trace.positions, everywhere=region.pos is None and region.where is None))
        else:
            y = fn(x) if scope is None else fn(x, scope)
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError) and (type(error) is not UserError or r.tap.address in str(error)):
            raise  # it says where it happened
        expects = "" if isinstance(error, UserError) else _arrays_of(fn)
        here = f"{what}, {x.dtype}{list(x.shape)} ({' '.join(axes)})"
        raise EditError(f"the edit {name_of(fn)} cannot act on {here}: {expects}{error}") from error
    if jnp.shape(y) != x.shape:
        raise EditError(
            f"the edit {name_of(fn)} at {r.tap.address!r} returned shape {jnp.shape(y)}, "
            f"the value there has {x.shape} ({' '.join(axes)})"
        )
    y = y if y.dtype == x.dtype else y.astype(x.dtype)
    rows = out_sharding_like(x)
    y = y if rows is None else jax.sharding.reshard(y, rows)  # an array of the edit may have another sharding
    if r.tap.region.is_everything:
        return y
    inside, valid = regions.mask(r.tap.region, x.shape, axes, trace.positions, what, trace.note_index)
    y = y if inside is None else jnp.where(inside, y, x)
    if valid is not None and jnp.issubdtype(x.dtype, jnp.inexact):
        y = jnp.where(valid, y, jnp.nan)  # an index that is data cannot raise: NaN, not a silent miss
    return y


def checked_layer(r: Resolved, x: Array, trace: Trace) -> Array:
    """Check that the model has the layer that `layer=` of the edit names.

    Raises `RegionError` if the layer is known. A traced layer cannot raise, so the value becomes NaN.
    """
    layer, depth = r.tap.layer, trace.depth
    if layer is None or layer.dtype == bool:
        return x
    what = f"layer= of {r.tap.address!r}"
    trace.note_index(layer, (depth, depth), what)
    if not isinstance(layer, jax.core.Tracer):
        regions.check_known(layer, (depth, depth), what)
        return x
    valid = jnp.all((layer >= -depth) & (layer < depth))
    return jnp.where(valid, x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.inexact) else x


def name_of(fn: Callable[..., Any]) -> str:
    """The name of an edit's callable, for messages."""
    fn = fn.fn if isinstance(fn, Each) else fn
    fn = fn.func if isinstance(fn, jax.tree_util.Partial) else fn
    return getattr(fn, "__name__", type(fn).__name__)


def _arrays_of(fn: Callable[..., Any]) -> str:
    """The shapes of an edit's arrays, which tell what value it is made for, as the beginning of a sentence."""
    leaves = [(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(fn) if jnp.ndim(leaf)]
    shapes = [f"{jax.tree_util.keystr(path, simple=True, separator='.')} {list(leaf.shape)}" for path, leaf in leaves]
    more = ", ..." if len(shapes) > 4 else ""
    return f"its arrays are {', '.join(shapes[:4])}{more}; " if shapes else ""
