"""Taps: what a model under surgery is called with. An `Edit` changes a named value, a `Read` keeps it.

Their class and address are structure, everything else in them is data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from jax_interp.surgery.address import Address, AddressError
from jax_interp.surgery.contract import Model, ScopedEdit
from jax_interp.surgery.region import Region


def static(**kwargs) -> Any:
    """A dataclass field that is structure of the pytree: with another value a program compiles again."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Each:
    """An edit with values per layer.

    Args:
      fn: a callable pytree whose leaves have a leading axis, with one entry for each layer of the address. Scalars are
        shared by all layers.

    Example:
        at("blocks.*.resid_post", Each(Add(vectors)))    # vectors [layer, d_model]
    """

    fn: Callable

    def values(self) -> list[Any]:
        """The leaves that differ by layer."""
        return [leaf for leaf in jax.tree.leaves(self.fn) if jnp.ndim(leaf)]

    def with_values(self, values: list[Any]) -> Callable:
        """The callable of one layer, from that layer's entry of each of `values()`."""
        entries = iter(values)
        return jax.tree.map(lambda leaf: next(entries) if jnp.ndim(leaf) else leaf, self.fn)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
    """Made by `at`: replace the value at `address` by `fn(value)`, inside `region`; with `layer`, at that layer."""

    fn: Callable[..., Array] | Each
    layer: Int32[Array, "*layers"] | Bool[Array, "layer"] | None
    region: Region
    address: str = static()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Read:
    """Made by `read`: keep the value at `address`. With `output=False` the model's own output is not wanted."""

    address: str = static()
    output: bool = static(default=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Survey:
    """Ask the model for the names and types of all its values instead of its output."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IndexBounds:
    """Ask the model for the bounds of its edits' indices instead of its output: `call` checks later indices by them."""


Tap = Edit | Read | Survey | IndexBounds


@dataclasses.dataclass(frozen=True, eq=False)
class Wrapper:
    """Base class of models around another model: frozen dataclasses, registered as pytrees.

    Such a model has the attributes of the model inside: its config, blocks, embedding matrix. `replan` and `map_blocks`
    change the blocks of the model inside.
    """

    model: Model

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in type(self).__dataclass_fields__:
            raise AttributeError(name)
        return getattr(self.model, name)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Tapped(Wrapper):
    """A model under surgery: a model, and the taps that it is called with. `read` and `edit` return it.

    It is compared by identity, so that `jax.jit(edited)` works; its arrays are constants of that program. `call` makes
    the model an argument, so that its arrays can change without compiling again.
    """

    taps: tuple[Tap, ...]

    def __call__(self, *args: Any, taps: tuple[Tap, ...] = (), **kwargs: Any) -> Any:
        return self.model(*args, taps=(*self.taps, *taps), **kwargs)


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A tap in a model of known depth.

    Attributes:
      index: its place in the nest of surgeries, innermost first.
      tap: an `Edit` or a `Read`.
      address: its address.
      layers: the layers that the address means; None outside the blocks.
    """

    index: int
    tap: Any
    address: Address
    layers: tuple[int, ...] | None

    @property
    def name(self) -> str:
        return self.address.name

    @property
    def inside(self) -> bool:
        return self.layers is not None

    @property
    def is_scoped(self) -> bool:
        """Whether the edit is called with a site."""
        fn = self.tap.fn.fn if isinstance(self.tap.fn, Each) else self.tap.fn
        return isinstance(fn, ScopedEdit)


def resolve(taps: tuple[Tap, ...], depth: int) -> list[Resolved]:
    """Find the layers of each tap. Raises `AddressError` for what is wrong before the model runs."""
    resolved, reads = [], set()
    for i, tap in enumerate(tap for tap in taps if not isinstance(tap, (Survey, IndexBounds))):
        address = Address.parse(tap.address)
        if address.layers == "" and not (isinstance(tap, Edit) and tap.layer is not None):
            raise AddressError(
                f"{tap.address!r} does not say which layers: write 'blocks.*.{address.name}'"
                + (", or give layer=" if isinstance(tap, Edit) else "")
            )
        if isinstance(tap, Edit) and tap.layer is not None and address.layers != "":
            raise AddressError(
                f"layer= goes with an address that leaves the layer open, 'blocks.{address.name}'; got {tap.address!r}"
            )
        r = Resolved(i, tap, address, address.resolve(depth))
        if isinstance(tap, Read):
            if (r.name, r.layers) in reads:
                raise AddressError(f"{tap.address!r} is read twice in one nest of surgeries: read it once")
            reads.add((r.name, r.layers))
        if isinstance(tap, Edit) and isinstance(tap.fn, Each):
            if r.layers is None:
                raise AddressError(f"Each carries values per layer, and {tap.address!r} is outside the blocks")
            for leaf in tap.fn.values():
                if leaf.shape[0] != len(r.layers):
                    raise AddressError(
                        f"Each at {tap.address!r} needs a leading axis of {len(r.layers)} layers, "
                        f"got shape {leaf.shape}"
                    )
        resolved.append(r)
    return resolved
