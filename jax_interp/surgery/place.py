"""`Place`: which block is running, and which edits act in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jax_interp.surgery.region import RegionError
from jax_interp.surgery.taps import Each, Resolved


@dataclasses.dataclass(frozen=True)
class Place:
    """The block that is running.

    Attributes:
      layer: the number of the block: an int in an unrolled block, a traced integer in a scanned block, None outside
        the blocks.
      span: the layers of the segment. In a scan, one traced body runs all of them.
      layers: the layers of `span` at which the current scope exists.
      each: for edits with values per layer that the scan slices: tap index -> the values of the running layer.
    """

    layer: int | Int[Array, ""] | None = None
    span: range = range(0)
    layers: tuple[int, ...] = ()
    each: dict[int, list[Array]] = dataclasses.field(default_factory=dict)

    @property
    def inside(self) -> bool:
        """Whether a block is running."""
        return self.layer is not None

    @property
    def is_scanned(self) -> bool:
        """Whether the running block is part of a scan."""
        return self.inside and not isinstance(self.layer, int)

    @property
    def names_layers(self) -> tuple[int, ...] | tuple[None]:
        """The layers of the values that are named in this scope; (None,) outside the blocks."""
        return self.layers if self.inside else (None,)

    def lookup(self, table: list) -> Array:
        """The entry of the running layer in `table`, which has one entry for each layer of the span."""
        return jnp.asarray(table)[self.layer - self.span.start]  # type: ignore[operator]

    def wanted(self, r: Resolved) -> list[int]:
        """The layers of this scope that a tap addresses."""
        return [layer for layer in self.layers if layer in (r.layers or ())]

    def acts(self, r: Resolved, depth: int) -> bool | Bool[Array, ""]:
        """Whether an edit acts in the running layer: a bool if this is known while tracing, otherwise an array."""
        if not self.inside:
            return True
        layer = r.tap.layer
        if layer is not None:
            if layer.dtype == bool:
                if layer.shape != (depth,):
                    raise RegionError(f"the mask layer= has shape {layer.shape}, the model has {depth} layers")
                return layer[self.layer]
            layer = jnp.where(layer < 0, layer + depth, layer)
            return jnp.any(layer == self.layer)
        wanted = self.wanted(r)
        if not wanted or len(wanted) == len(self.layers):
            return bool(wanted)
        return self.lookup([layer in wanted for layer in self.span])

    def below(self, r: Resolved) -> Place:
        """The place for the scope of a scoped edit: only the layers at which the edit acts."""
        if not self.inside or r.tap.layer is not None:
            return self
        return dataclasses.replace(self, layers=tuple(self.wanted(r)))

    def callable_of(self, r: Resolved) -> Callable[..., Any]:
        """The callable of an edit. For `Each`, the callable with the values of the running layer."""
        fn = r.tap.fn
        if not isinstance(fn, Each):
            return fn
        assert r.layers is not None, "`resolve` refuses Each outside the blocks"
        if r.index in self.each:
            return fn.with_values(self.each[r.index])
        if not self.is_scanned:
            row = r.layers.index(self.layer)
            return fn.with_values([leaf[row] for leaf in fn.values()])
        row = self.lookup([r.layers.index(layer) if layer in r.layers else 0 for layer in self.span])
        return fn.with_values([jax.lax.dynamic_index_in_dim(leaf, row, keepdims=False) for leaf in fn.values()])
