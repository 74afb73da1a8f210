"""Placements: a factor of the strength at each token. They say where, when and for which rows steering acts.

    vector.using("rotate", tokens=generated())                      at new tokens only
    vector.using(tokens=(generated(), linear_decay(20)))            at new tokens, ever weaker
    conditional(vector.using("ablate"), gates)                      in some rows of the batch (a `RowGate`)

`steering.applying` has the placements. Several of them multiply. Where the factor is 0, the value keeps its bits, with
every operator. A placement uses absolute positions. It acts on the same tokens of a whole text and of a text that is
generated with a cache, whatever the padding.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.layer import out_sharding_like
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Each, Edit, ScopedEdit, Site, TokenEdit, ValueTokens
from jax_interp.surgery.value_tokens import wide
from jax_interp.surgery.verbs import flat_edits, strongly_typed


class Placement(abc.ABC):
    """A factor of the strength at each token. A subclass is a frozen dataclass that is registered as a pytree."""

    @abc.abstractmethod
    def factor(self, x: Array, tokens: ValueTokens) -> Float[Array, "#batch #pos"]:
        """The factor at each token of a value: 1 is the whole strength, 0 is no change.

        Args:
          x: the value, with axes (batch, pos, ...).
          tokens: the tokens of the value.
        """


class ScopedPlacement(abc.ABC):
    """A factor of the strength that an earlier edit of the same run has made, as a carried value."""

    @abc.abstractmethod
    def factor_in(self, site: Site) -> Float[Array, "#batch #pos"]:
        """The factor at each token, from the scope of the edited value."""


AnyPlacement = Placement | ScopedPlacement
Tokens = AnyPlacement | Sequence[AnyPlacement]


@runtime_checkable
class Scalable(Protocol):
    """An edit with a strength: it can act with a factor of it at each token."""

    def with_factor(self, x: Array, tokens: ValueTokens, factor: Float[Array, "..."]) -> Array:
        """The edited value. `factor` has the axes of the value without the last one, which may have length 1."""
        ...


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Placed(TokenEdit):
    """An edit that acts where placements say.

    A factor between 0 and 1 is a factor of the strength of `Steer`. Another edit moves the value this part of its way:
    x + factor · (edit(x) - x).

    Args:
      edit: a plain edit or a token edit.
      placements: their factors multiply.
    """

    edit: Callable[..., Array]
    placements: tuple[Placement, ...]

    def __call__(self, x: Array, tokens: ValueTokens) -> Array:
        return _acting(self.edit, x, tokens, _product(self.placements, x, tokens))


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PlacedScoped(ScopedEdit):
    """`Placed` for an edit, or placements, that need a site."""

    edit: Callable[..., Array]
    placements: tuple[AnyPlacement, ...]

    def __call__(self, x: Array, site: Site) -> Array:
        scoped = [p.factor_in(site) for p in self.placements if isinstance(p, ScopedPlacement)]
        known = tuple(p for p in self.placements if isinstance(p, Placement))
        factor = _product(known, x, site.tokens, scoped)
        if isinstance(self.edit, ScopedEdit):
            return _part_of_the_way(x, self.edit(x, site), factor)
        return _acting(self.edit, x, site.tokens, factor)


def placed(edits: Iterable[Edit | Iterable], tokens: Tokens) -> tuple[Edit, ...]:
    """Edits that act where placements say.

    Args:
      edits: edits made by `at`, or nested lists of them. They keep their addresses and regions.
      tokens: a placement, or several.

    Raises:
      UserError: one of them is no placement.
    """
    placements, flat = as_placements(tokens), tuple(flat_edits(edits))
    return tuple(dataclasses.replace(e, fn=_placed(e.fn, placements)) for e in flat) if placements else flat


def as_placements(tokens: Tokens | None) -> tuple[AnyPlacement, ...]:
    """Placements as a tuple. Raises `UserError` if something is no placement."""
    several = tuple(tokens) if isinstance(tokens, (tuple, list)) else () if tokens is None else (tokens,)
    for one in several:
        if not isinstance(one, AnyPlacement):
            raise UserError(
                f"tokens= takes placements, such as generated() or first(4), got {type(one).__name__}; positions go to "
                "pos=, and a mask goes to where="
            )
    return jax.tree.map(strongly_typed, several)


def _placed(fn: Any, placements: tuple[AnyPlacement, ...]) -> Any:
    if isinstance(fn, Each):
        layers = fn.values()[0].shape[0] if fn.values() else 1
        spread = lambda leaf: jnp.broadcast_to(leaf, (layers, *jnp.shape(leaf))) if jnp.ndim(leaf) else leaf
        return Each(_placed(fn.fn, jax.tree.map(spread, placements)))
    needs_site = isinstance(fn, ScopedEdit) or any(isinstance(one, ScopedPlacement) for one in placements)
    return PlacedScoped(fn, placements) if needs_site else Placed(fn, placements)  # type: ignore[arg-type]


def _product(
    placements: tuple[Placement, ...], x: Array, tokens: ValueTokens, more: Iterable[Array] = ()
) -> Float[Array, "..."]:
    """The product of the factors, with the axes of `x` without the last one."""
    if not tokens.has_rows:
        raise UserError(
            f"a placement needs a value with a batch and a pos axis; this one has ({' '.join(tokens.axes)})"
        )
    dtype = wide(x).dtype
    factor = jnp.ones((1, 1), dtype)
    for one in (*(placement.factor(x, tokens) for placement in placements), *more):
        factor = factor * one.astype(dtype)
    factor = jnp.broadcast_to(tokens.expanded(factor)[..., 0], x.shape[:-1])
    rows = out_sharding_like(x)  # the numbers of each row may have another sharding
    return factor if rows is None else jax.sharding.reshard(factor, jax.P(*rows[: factor.ndim]))


def _acting(fn: Callable[..., Array], x: Array, tokens: ValueTokens, factor: Float[Array, "..."]) -> Array:
    """The value under a plain edit or a token edit that acts with a factor."""
    if isinstance(fn, Scalable):
        return _kept(x, fn.with_factor(x, tokens, factor), factor)
    return _part_of_the_way(x, fn(x, tokens) if isinstance(fn, TokenEdit) else fn(x), factor)


def _kept(x: Array, y: Array, factor: Float[Array, "..."]) -> Array:
    """`y`, and `x` where the factor is 0."""
    return jnp.where((factor == 0)[..., None], x, y.astype(x.dtype))


def _part_of_the_way(x: Array, y: Array, factor: Float[Array, "..."]) -> Array:
    factor = factor[..., None]
    part = wide(x) + factor * (wide(y) - wide(x))
    return jnp.where(factor == 0, x, jnp.where(factor == 1, y.astype(x.dtype), part.astype(x.dtype)))
