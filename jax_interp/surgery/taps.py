"""Taps: the reads and edits that a model under surgery gets as `taps=`.

An `Edit` changes a named value, a `Read` returns it. The class and address of a tap are structure. Everything else in
it is data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from jax_interp.core.pytrees import register_dataclass
from jax_interp.core.short_repr import ShortRepr
from jax_interp.surgery.address import Address, AddressError
from jax_interp.surgery.contract import Model, ScopedEdit
from jax_interp.surgery.region import Region


def static(**kwargs) -> Any:
    """A dataclass field that is part of the pytree's structure. A program compiles again for another value of it."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Each:
    """An edit with values per layer.

    Args:
      fn: a callable pytree whose leaves have a leading axis with one entry for each layer of the address. Scalars are
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


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Edit(ShortRepr):
    """Replace the value at `address` by `fn(value)` inside `region`, and only at `layer` if it is given. See `at`."""

    fn: Callable[..., Array] | Each
    layer: Int32[Array, "*layers"] | Bool[Array, "layer"] | None
    region: Region
    address: str = static()


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Read:
    """Return the value at `address`. With `output=False` the model does not return its own output. See `read`."""

    address: str = static()
    output: bool = static(default=True)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Survey:
    """Ask the model for the names and types of all its values, instead of its output."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class IndexBounds:
    """Ask the model for the bounds of the indices in its edits, instead of its output. `call` needs them for checks."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockInputs:
    """Ask the model for the inputs of its blocks too. See `resuming.block_inputs`."""


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Resume:
    """Run the blocks from `layer` on, with `stream` as the input of this block. See `resuming.resumed`.

    The layer is data, or it is `fixed`: part of the structure.
    """

    layer: Int32[Array, ""] | None
    stream: Any
    fixed: int | None = static(default=None)


Tap = Edit | Read | Survey | IndexBounds | BlockInputs | Resume


@dataclasses.dataclass(frozen=True, eq=False)
class Wrapper(ShortRepr):
    """Base class of models that wrap another model. Subclasses are frozen dataclasses, registered as pytrees.

    A wrapper has the attributes of the wrapped model: its config, blocks, embedding matrix. `replan` and `map_blocks`
    change the blocks of the wrapped model.
    """

    model: Model

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in type(self).__dataclass_fields__:
            raise AttributeError(name)
        return getattr(self.model, name)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Tapped(Wrapper):
    """A model under surgery: a model and its taps. `read` and `edit` return it.

    It is compared by identity, so `jax.jit(edited)` works, but then the arrays are constants of the compiled program.
    `call` passes the model as an argument, so its arrays can change without compiling again.
    """

    taps: tuple[Tap, ...]

    def __call__(self, *args: Any, taps: tuple[Tap, ...] = (), **kwargs: Any) -> Any:
        return self.model(*args, taps=(*self.taps, *taps), **kwargs)


def taps_of(model: Model) -> Iterator[Tap]:
    """The reads and edits of a model, including those of nested surgeries, outermost first."""
    if isinstance(model, Tapped):
        yield from model.taps
    if isinstance(model, Wrapper):
        yield from taps_of(model.model)


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A tap in a model of known depth.

    Attributes:
      index: its position in the nested surgeries, innermost first.
      tap: an `Edit` or a `Read`.
      address: the parsed address.
      layers: the layers of the address; None outside the blocks.
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
    """Find the layers of each tap. Raises `AddressError` for errors that are visible before the model runs."""
    resolved, reads = [], set()
    for i, tap in enumerate(tap for tap in taps if isinstance(tap, (Edit, Read))):
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
                raise AddressError(f"{tap.address!r} is read twice in nested surgeries: read it once")
            reads.add((r.name, r.layers))
        if isinstance(tap, Edit) and isinstance(tap.fn, Each):
            if r.layers is None:
                raise AddressError(f"Each has values per layer, but {tap.address!r} is outside the blocks")
            for leaf in tap.fn.values():
                if leaf.shape[0] != len(r.layers):
                    raise AddressError(
                        f"Each at {tap.address!r} needs a leading axis of {len(r.layers)} layers, "
                        f"got shape {leaf.shape}"
                    )
        resolved.append(r)
    return resolved
