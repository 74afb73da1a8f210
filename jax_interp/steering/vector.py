"""`SteeringVector`: directions in a model, one for each address, and the edits that steer along them.

    vector = SteeringVector({"blocks.2.resid_post": v2, "blocks.3.resid_post": v3})
    steered = edit(model, *vector.edits(4.0))                       add 4 v at every token
    vector.using("ablate").edits(1.0)                               remove the directions
    vector.using(pos=slice(5, None)).edits(4.0)                     from position 5 on
    vector.using(tokens=generated()).edits(4.0)                     at new tokens only (steering.applying)

Whatever has `edits(strength)` is a `Steering`: it can be swept, measured and served. Strength 0 of an added vector is
the model without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.steering.operators import operator_called
from jax_interp.steering.placement import AnyPlacement, Tokens, as_placements, placed
from jax_interp.steering.steer import Steer
from jax_interp.surgery import Edit, at
from jax_interp.surgery.address import Address
from jax_interp.surgery.region import Index, index
from jax_interp.surgery.taps import static

Strength = Float[Array, "..."] | float


class Steering(Protocol):
    """Something that steers a model: it gives the edits for a strength. It is a pytree, and so is each edit."""

    def edits(self, strength: Strength = 1.0) -> tuple[Edit, ...]:
        """The edits of this strength: a number, or one for each row, `[batch, 1]`."""
        ...


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SteeringVector:
    """Directions to steer along: a vector `[d]` for each address of one layer.

    Args:
      vectors: the vectors by address, such as "blocks.2.resid_post".

    Raises:
      UserError: there is no vector, an address names several layers, or a vector has more than one axis.
    """

    vectors: Mapping[str, Float[Array, " d"]]

    def __post_init__(self) -> None:
        if not isinstance(self.vectors, Mapping):
            return  # a pytree of other leaves (shapes, shardings) is being made
        if not self.vectors:
            raise UserError("a steering vector needs at least one address: {'blocks.2.resid_post': vector}")
        for address, vector in self.vectors.items():
            if not Address.parse(address).is_single:
                raise UserError(f"{address!r} names several layers: give each layer its own vector")
            if getattr(vector, "ndim", 1) != 1:
                raise UserError(f"the vector at {address!r} has shape {vector.shape}: it must be [d]")

    def edits(self, strength: Strength = 1.0) -> tuple[Edit, ...]:
        """The edits that add `strength` times each vector, at all tokens."""
        return self.using().edits(strength)

    def using(
        self,
        operator: str = "add",
        *,
        pos: Index | None = None,
        where: Bool[ArrayLike, "batch pos"] | None = None,
        tokens: Tokens = (),
    ) -> AppliedVector:
        """The same vectors with another operator, or at some tokens.

        Args:
          operator: a name in `OPERATORS`.
          pos: the positions, as in `at`.
          where: a mask over the tokens, as in `at`.
          tokens: placements of `steering.applying`, such as `generated()`: one, or several, whose factors multiply.

        Raises:
          UserError: there is no such operator, or `tokens` has something else than placements.
        """
        return AppliedVector(self, operator, index(pos), where, as_placements(tokens))

    def only(self, addresses: Iterable[str]) -> SteeringVector:
        """The vectors at these addresses.

        Raises:
          UserError: there is no vector at one of them.
        """
        chosen = list(addresses)
        if missing := [address for address in chosen if address not in self.vectors]:
            raise UserError(f"no vector at {', '.join(missing)}: there are {', '.join(self.vectors)}")
        return SteeringVector({address: self.vectors[address] for address in chosen})

    def scaled(self, factor: Float[Array, ""] | float) -> SteeringVector:
        """Every vector times `factor`."""
        return SteeringVector({a: v * jnp.asarray(factor, jnp.asarray(v).dtype) for a, v in self.vectors.items()})

    def unit(self) -> SteeringVector:
        """Every vector divided by its norm. A vector of norm zero stays zero."""
        norm = lambda v: jnp.maximum(jnp.linalg.norm(v), jnp.finfo(jnp.asarray(v).dtype).tiny)
        return SteeringVector({address: v / norm(v) for address, v in self.vectors.items()})

    def norms(self) -> dict[str, float]:
        """The norm of the vector at each address."""
        return {a: float(np.linalg.norm(np.asarray(v, np.float64))) for a, v in self.vectors.items()}


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class AppliedVector:
    """A steering vector with its operator and its tokens. `SteeringVector.using` makes it."""

    vector: SteeringVector
    operator: str = static(default="add")
    pos: Any = None
    where: Any = None
    tokens: tuple[AnyPlacement, ...] = ()

    def __post_init__(self) -> None:
        operator_called(self.operator)

    def edits(self, strength: Strength = 1.0) -> tuple[Edit, ...]:
        """The edits of this strength: a number, or one for each row, `[batch, 1]`."""
        steer = lambda vector: Steer(vector, strength, self.operator)
        vectors = self.vector.vectors.items()
        return placed((at(a, steer(v), pos=self.pos, where=self.where) for a, v in vectors), self.tokens)
