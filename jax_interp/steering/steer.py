"""`Steer`: the edit that steers a value along a vector, at some tokens, by an operator."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.steering.operators import operator_called, root
from jax_interp.surgery import TokenEdit, ValueTokens
from jax_interp.surgery.taps import static
from jax_interp.surgery.value_tokens import wide


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Steer(TokenEdit):
    """Steer a value along a vector.

    Args:
      vector: the vector, `[d]`, or one for each row, `[batch, 1, d]`. Its norm counts: strength 1 adds the vector once.
      strength: the factor of the vector; a number, or one for each row, `[batch, 1]`. 0 changes nothing, except with
        `ablate_then_add`, `at_least` and `at_most`, where it sets or bounds the coefficient at 0.
      operator: the name of an operator of `operators.py`.

    Example:
        edit(model, at("blocks.3.resid_post", Steer(vector, 4.0, "rotate"), pos=slice(5, None)))
    """

    vector: Float[Array, "..."]
    strength: Float[Array, "..."] | float = 1.0
    operator: str = static(default="add")

    def __post_init__(self) -> None:
        operator_called(self.operator)

    def __call__(self, x: Array, tokens: ValueTokens) -> Array:
        return self.with_factor(x, tokens, jnp.ones((), wide(x).dtype))

    def with_factor(self, x: Array, tokens: ValueTokens, factor: Float[Array, "..."]) -> Array:
        """The value steered with `factor` times the strength. The factor has the axes of the value without the last."""
        strength = jnp.broadcast_to(self._strength(x, tokens) * factor, x.shape[:-1])
        vector = jnp.asarray(self.vector)
        if tokens.has_rows and vector.ndim not in (1, x.ndim - 2, x.ndim):
            rows = "batch, " + "1, " * (x.ndim - 2) + "d"
            raise UserError(f"the vector has shape {vector.shape}: give [d], or one for each row, [{rows}]")
        return steered(x, tokens.like(vector, x), strength, self.operator)

    def _strength(self, x: Array, tokens: ValueTokens) -> Float[Array, "..."]:
        """The strength, with the axes of the value without the last one."""
        strength = jnp.asarray(self.strength, wide(x).dtype)
        if not strength.ndim or not tokens.has_rows:
            return strength
        if strength.ndim != 2 or strength.shape[1] != 1:
            raise UserError(f"the strength has shape {strength.shape}: give a number, or one for each row, [batch, 1]")
        return tokens.expanded(strength)[..., 0]


def steered(
    x: Float[Array, "... d"], vector: Float[Array, "... d"], strength: Float[Array, "..."], operator: str
) -> Float[Array, "... d"]:
    """The steered value, computed in at least float32 and returned in the dtype of that computation.

    Args:
      x: the value.
      vector: the vector, broadcast to the value.
      strength: the strength of each token.
      operator: the name of an operator.
    """
    x = wide(x)
    if operator == "add":  # a vector of zeros has a gradient too
        return x + strength[..., None] * vector
    length = root(jnp.sum(vector * vector, axis=-1))
    nothing = length == 0
    unit = vector / jnp.where(nothing, 1.0, length)[..., None]
    along, across = parts(x, unit)
    scale, amount = operator_called(operator)(across, along, strength, length)
    return jnp.where(nothing, 1.0, scale)[..., None] * x + jnp.where(nothing, 0.0, amount)[..., None] * unit


def parts(x: Float[Array, "... d"], unit: Float[Array, "... d"]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The coefficient of `x` along a unit vector, and the norm of the rest of `x`."""
    along = jnp.sum(x * unit, axis=-1)
    rest = x - along[..., None] * unit
    return along, root(jnp.sum(rest * rest, axis=-1))
