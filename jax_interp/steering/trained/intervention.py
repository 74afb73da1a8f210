"""`Intervention`: the trained part of a steering method, and `Intervened`, the edit that applies it.

    x'  =  x + strength · change(x)

A method is one file below `interventions/`: a config, registered in `INTERVENTIONS`, and the pytree that it makes.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.core.registry import Registry
from jax_interp.surgery import TokenEdit, ValueTokens
from jax_interp.surgery.value_tokens import wide

Value = Float[Array, "batch pos d"]
Read = Bool[Array, "batch pos"] | None
"""The tokens that an intervention acts on, where it depends on several tokens. None: all real tokens."""


class Intervention(abc.ABC):
    """A trained change of a value. It is a frozen dataclass, registered as a pytree; its leaves are trained."""

    penalised: ClassVar[bool] = False
    """Whether training adds `penalty` to the loss."""
    detects: ClassVar[bool] = False
    """Whether it has `latents`, and needs `calibrated` before use."""

    @abc.abstractmethod
    def change(self, x: Value, tokens: ValueTokens, read: Read) -> Value:
        """What strength 1 adds to the value.

        Args:
          x: the value, in at least float32.
          tokens: the tokens of the value.
          read: the tokens that the intervention acts on.
        """

    def removal(self, x: Value) -> Value:
        """What removes the concept from the value, if it is added.

        Raises:
          UserError: the method has no direction that could be removed.
        """
        raise UserError(
            f"{type(self).__name__} has no direction that could be removed: take a method with a vector, or an "
            'objective that suppresses by negative strengths, RePS(suppress="negative")'
        )

    def constrained(self) -> Intervention:
        """The nearest intervention that satisfies the method's constraint. It is differentiable.

        Training applies it in the loss, and to the parameters after each step. By default there is no constraint.
        """
        return self

    def direction(self) -> Float[Array, " d"] | None:
        """The vector that strength 1 adds to each value. None: what is added depends on the value."""
        return None

    def penalty(self, x: Value, read: Bool[Array, "batch pos"]) -> Float[Array, ""]:
        """A term of the loss that depends on the value before the change."""
        return jnp.zeros((), x.dtype)

    def latents(self, x: Value) -> Float[Array, "batch pos"] | None:
        """How much of the concept each token has, for a method that is a detector too. None: it is no detector."""
        return None

    def calibrated(self, largest: Float[Array, ""]) -> Intervention:
        """The intervention for use, given its largest latent on the training texts."""
        return self


class InterventionConfig(abc.ABC):
    """How an intervention begins. A frozen dataclass that is registered in `INTERVENTIONS`."""

    reserved: ClassVar[int] = 0
    """The number of tokens at the front of each text that the method reserves for itself."""

    @abc.abstractmethod
    def init(self, key: Key[Array, ""], d: int) -> Intervention:
        """A new intervention for a value of width d, in float32."""


INTERVENTIONS = Registry("intervention", InterventionConfig)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Intervened(TokenEdit):
    """The edit `x + strength · change(x)`.

    Args:
      intervention: the trained change.
      strength: a number, or one for each row, `[batch, 1]`. 0 changes nothing.
      removed: rows from which the concept is removed instead, `[batch, 1]`. None: no row.
      read: the tokens that the intervention acts on, `[batch, pos]`. None: all real tokens.
    """

    intervention: Intervention
    strength: Float[Array, "..."] | float = 1.0
    removed: Bool[Array, "batch 1"] | None = None
    read: Bool[Array, "batch pos"] | None = None

    def __call__(self, x: Array, tokens: ValueTokens) -> Array:
        x = wide(x)
        intervention = jax.tree.map(lambda leaf: leaf.astype(x.dtype), self.intervention)
        strength = jnp.asarray(self.strength, x.dtype)
        if strength.ndim == 2 and tokens.has_rows:
            strength = tokens.expanded(strength)[..., 0]
        strength = jnp.broadcast_to(strength, x.shape[:-1])[..., None]
        changed = x + strength * intervention.change(x, tokens, self.read)
        if self.removed is None:
            return changed
        return jnp.where(self.removed[..., None], x + intervention.removal(x), changed)


def along(x: Value, vector: Float[Array, " d"]) -> Float[Array, "batch pos"]:
    """x · vector, in full precision."""
    return jnp.einsum("...d,d->...", x, vector, precision=jax.lax.Precision.HIGHEST)


def projected(x: Value, rows: Float[Array, "k d"]) -> Float[Array, "batch pos k"]:
    """The products of the value with each row, in full precision."""
    return jnp.einsum("...d,kd->...k", x, rows, precision=jax.lax.Precision.HIGHEST)


def combined(coefficients: Float[Array, "batch pos k"], rows: Float[Array, "k d"]) -> Value:
    """The sum of the rows, each times its coefficient, in full precision."""
    return jnp.einsum("...k,kd->...d", coefficients, rows, precision=jax.lax.Precision.HIGHEST)


def vector_removal(x: Value, vector: Float[Array, " d"]) -> Value:
    """-ReLU(x · v) v / ‖v‖²: it removes a positive component along v, and leaves a negative one (RePS, Φ_Null).

    A vector of norm zero removes nothing.
    """
    square = jnp.sum(vector * vector)
    amount = jax.nn.relu(along(x, vector)) / jnp.where(square > 0, square, 1.0)
    return -amount[..., None] * jnp.broadcast_to(vector, x.shape)
