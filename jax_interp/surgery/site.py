"""`Site`: what a model calls to give a value its name.

`site(name, x)` is at once the name, the reader, the editor and `jax.ad_checkpoint.checkpoint_name`, so one
vocabulary addresses activations, metrics and what a remat policy keeps. It is passed explicitly: an argument
cannot go stale in a cache. Sites that nobody taps leave no trace in the compiled program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Int

from jax_interp.core.errors import UserError
from jax_interp.surgery import region as regions
from jax_interp.surgery.address import AddressError
from jax_interp.surgery.stack import depth_of
from jax_interp.surgery.taps import Each, Read, Resolved
from jax_interp.surgery.trace import Trace


class EditError(UserError):
    """What an edit returned cannot stand in for the value."""


@dataclasses.dataclass(frozen=True)
class Here:
    """Which block is running: `layer` is an int where the block runs as is, traced where it is scanned.

    `span` are the layers of the segment, all run by this one piece of code; `layers` those of them at which
    this scope exists. `each` holds, by tap, the running layer's values of an `Each`, where the scan slices them.
    """

    layer: Any
    span: range
    layers: tuple[int, ...]
    each: dict[int, list[Any]] = dataclasses.field(default_factory=dict)

    @property
    def is_scanned(self) -> bool:
        return not isinstance(self.layer, int)

    def lookup(self, table: list) -> Array:
        """The running layer's entry of a table that has one for each layer of the span."""
        return jnp.asarray(table)[self.layer - self.span.start]


class Site:
    """A scope of names. `site / "attn"` is the scope below it; `Site.open` the root that a model starts with."""

    def __init__(
        self,
        trace: Trace,
        prefix: str = "",
        here: Here | None = None,
        since: int = 0,
        kept: dict[int, Any] | None = None,
        looking: bool = False,
        axes: tuple[str, ...] = (),
    ):
        self.axes = axes  # of the value, where the scope is that of an edit
        self._trace, self._prefix, self._here, self._since = trace, prefix, here, since
        self._kept: dict[int, Any] = {} if kept is None else kept
        self._looking = looking

    @classmethod
    def open(
        cls,
        taps: tuple = (),
        blocks: Any = (),
        *,
        positions: Int[Array, "pos"] | Int[Array, "batch pos"] | None = None,
        length: int | Int[Array, ""] | Int[Array, "#batch 1"] | None = None,
        bounds: tuple[int | None, int | None] = (None, None),
        open_ended: bool = False,
    ) -> Site:
        """The root scope of a forward pass.

        `blocks` are the model's segments, so that layers can be counted. `positions` are the absolute positions
        of a value's `pos` axis where they are not 0..n-1 (left padding, generation), and `length` what negative
        positions count from then (the prompt's length), of each row where rows differ; default: one past a row's
        last. `bounds` (below, above): an edit's position lies from -below to above - 1, where that is known.
        `open_ended` says that it may come in another call, as in generation; otherwise one that no row has makes the
        value NaN, being data.
        """
        if positions is not None and length is None:
            length = jnp.max(positions, axis=-1, keepdims=True) + 1
        stand = regions.Positions(positions, length, bounds, open_ended)
        return cls(Trace(tuple(taps), depth_of(blocks), stand))

    def __truediv__(self, name: str) -> Site:
        return Site(self._trace, f"{self._prefix}{name}.", self._here, self._since, self._kept, self._looking)

    @property
    def layer(self) -> int | Int[Array, ""]:
        """The number of the block that this scope is in: an int where blocks run as they are, data where scanned."""
        if self._here is None:
            raise AddressError("only a scope inside the blocks has a layer")
        return self._here.layer

    def wants(self, *names: str) -> bool:
        """Whether any tap is on one of these names of this scope, so that a model may leave them unmade.

        Static, and the same for every layer of a scanned stretch.
        """
        full = [self._prefix + name for name in names]
        inside = self._here is not None
        self._trace.offered.update((name, inside) for name in full)
        if self._trace.survey:
            return True
        layers = None if self._here is None else set(self._here.layers)
        acting = (r for name in full for r in self._trace.acting(name, inside, self._since))
        return any(layers is None or layers.intersection(r.layers or ()) for r in acting)

    def __call__(self, name: str, x: Array, axes: str = "batch pos d_model") -> Array:
        """Give `x` its name. Returns it, or what the edits at this address make of it."""
        full, names, here = self._prefix + name, tuple(axes.split()), self._here
        self._trace.note(full, None if here is None else here.layers, x, names)
        for r in self._trace.acting(full, here is not None, self._since):
            self._trace.met.add(r.index)
            if isinstance(r.tap, Read):
                self._read(r, x)
            else:
                x = self._edit(r, x, full, names)
        return checkpoint_name(x, full)

    def close(self, output: Any) -> Any:
        """End the forward pass: check that every tap was met, and return what was asked for."""
        trace = self._trace
        if trace.survey:
            return trace.surveyed()
        trace.check()
        if not trace.reads:
            return output
        activations = trace.collect()
        return (output, activations) if trace.wants_output else activations

    # ---- reading --------------------------------------------------------------------------------------------

    def _read(self, r: Resolved, x: Array) -> None:
        here = self._here
        if here is None:
            self._trace.pieces[r.index].append(x)
        elif self._looking or not set(here.layers) & set(r.layers or ()):
            return
        elif not here.is_scanned:
            if here.layer in (r.layers or ()):
                self._kept[r.index] = x
        else:
            # The buffer has a row for each wanted layer of this segment. Every layer writes the row of the next
            # wanted one, which then overwrites it: no branch, no copy. After the last, rows are written back.
            buffer, wanted = self._kept[r.index], [layer for layer in here.layers if layer in (r.layers or ())]
            row = here.lookup([min(sum(w < layer for w in wanted), len(wanted) - 1) for layer in here.span])
            if wanted[-1] != here.layers[-1]:
                x = jnp.where(here.layer <= wanted[-1], x, jax.lax.dynamic_index_in_dim(buffer, row, keepdims=False))
            self._kept[r.index] = jax.lax.dynamic_update_index_in_dim(buffer, x, row, 0)

    # ---- editing --------------------------------------------------------------------------------------------

    def _edit(self, r: Resolved, x: Array, name: str, axes: tuple[str, ...]) -> Array:
        on = self._applies(r)
        scoped = getattr(r.tap.fn.fn if isinstance(r.tap.fn, Each) else r.tap.fn, "scoped", False)
        if on is False or (self._looking and not scoped):
            return x
        if not scoped:
            if on is True:
                return self._act(r, x, axes, None)
            return self._poison(r, jax.lax.cond(on, lambda x: self._act(r, x, axes, None), lambda x: x, x))

        def act(x, kept):
            scope = Site(self._trace, f"{name}.", self._below(r), r.index + 1, dict(kept), self._looking, axes)
            return self._act(r, x, axes, scope), scope._kept

        if on is True:
            x, kept = act(x, self._kept)
        else:  # what is read below the edit leaves the branch as an output; where the edit is off there is none
            made = jax.eval_shape(act, x, self._kept)[1]

            def skip(x, kept):
                return x, {i: kept[i] if i in kept else room(kind) for i, kind in made.items()}

            x, kept = jax.lax.cond(on, act, skip, x, self._kept)
            x = self._poison(r, x)
        self._kept.update(kept)
        return x

    def _applies(self, r: Resolved) -> Any:
        """Whether this edit acts here: a bool where that is structure, traced where it is data."""
        here = self._here
        if here is None:
            return True
        if r.tap.layer is not None:
            layer = r.tap.layer
            if layer.dtype == bool:
                if layer.shape != (depth := self._trace.depth,):
                    raise regions.RegionError(f"the mask layer= has shape {layer.shape}, the model has {depth} layers")
                return layer[here.layer]
            layer = jnp.where(layer < 0, layer + self._trace.depth, layer)
            return jnp.any(layer == here.layer)
        acts = set(here.layers).intersection(r.layers or ())
        if not acts or len(acts) == len(here.layers):
            return bool(acts)
        return here.lookup([layer in acts for layer in here.span])

    def _poison(self, r: Resolved, x: Array) -> Array:
        """A layer that is data and does not exist cannot raise inside a compiled program: it makes NaN instead."""
        if r.tap.layer is None:
            return x
        layer, depth = r.tap.layer, self._trace.depth
        if layer.dtype == bool:
            return x
        if not isinstance(layer, jax.core.Tracer):
            known = np.asarray(layer)
            if ((known < -depth) | (known >= depth)).any():
                raise regions.RegionError(
                    f"layer={known} of {r.tap.address!r} is outside: the model has layers 0 to {depth - 1}"
                )
            return x
        valid = jnp.all((layer >= -depth) & (layer < depth))
        return jnp.where(valid, x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.inexact) else x

    def _below(self, r: Resolved) -> Here | None:
        """The scope in which a scoped edit names its own values: only the layers at which it acts."""
        here = self._here
        if here is None or r.tap.layer is not None:
            return here
        return dataclasses.replace(here, layers=tuple(layer for layer in here.layers if layer in (r.layers or ())))

    def _act(self, r: Resolved, x: Array, axes: tuple[str, ...], scope: Site | None) -> Array:
        fn, what = self._values(r), f"the value at {r.tap.address!r}"
        try:
            y = fn(x) if scope is None else fn(x, scope)
        except (TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise EditError(
                f"the edit {_kind(fn)} cannot act on {what}, {x.dtype}{list(x.shape)} ({' '.join(axes)}): {error}"
            ) from error
        if jnp.shape(y) != x.shape:
            raise EditError(
                f"the edit {_kind(fn)} at {r.tap.address!r} returned shape {jnp.shape(y)}, "
                f"the value there has {x.shape} ({' '.join(axes)})"
            )
        y = y if y.dtype == x.dtype else y.astype(x.dtype)
        if r.tap.region.is_everything:
            return y
        inside, valid = regions.mask(r.tap.region, x.shape, axes, self._trace.positions, what)
        y = y if inside is None else jnp.where(inside, y, x)
        if valid is not None and jnp.issubdtype(x.dtype, jnp.inexact):
            y = jnp.where(valid, y, jnp.nan)  # an index that is data cannot raise: NaN, not a silent miss
        return y

    def _values(self, r: Resolved) -> Callable:
        """The edit's callable, with this layer's values where it carries some for each."""
        fn, here = r.tap.fn, self._here
        if not isinstance(fn, Each):
            return fn
        assert here is not None and r.layers is not None, "`resolve` refuses Each outside the blocks"  # noqa: PT018
        if r.index in here.each:
            return fn.with_values(here.each[r.index])
        if not here.is_scanned:
            row = r.layers.index(here.layer)
            return fn.with_values([leaf[row] for leaf in fn.values()])
        row = here.lookup([r.layers.index(layer) if layer in r.layers else 0 for layer in here.span])
        return fn.with_values([jax.lax.dynamic_index_in_dim(leaf, row, keepdims=False) for leaf in fn.values()])


def _kind(fn: Callable) -> str:
    """What to call an edit's callable in a message."""
    fn = fn.func if isinstance(fn, jax.tree_util.Partial) else fn
    return getattr(fn, "__name__", type(fn).__name__)


def room(like: Any, rows: int | None = None) -> Array:
    """Zeros for a value of type `like`, or for `rows` of them, sharded as it is where types carry shardings."""
    shape = like.shape if rows is None else (rows, *like.shape)
    sharding = getattr(like, "sharding", None)
    if sharding is None or sharding.mesh.empty or not sharding.mesh.are_all_axes_explicit:
        return jnp.zeros(shape, like.dtype)
    spec = sharding.spec if rows is None else jax.P(None, *sharding.spec)
    return jnp.zeros(shape, like.dtype, out_sharding=spec)
