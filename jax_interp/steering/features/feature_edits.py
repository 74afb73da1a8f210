"""The edits of dictionary features: add what a latent writes, or change the latent and add the difference.

    add        x + s a_i W_dec[i]
    clamp      x + (s a_i - f_i) W_dec[i]            f_i: the latent of x
    at_least   x + max(s a_i - f_i, 0) W_dec[i]

The value is never replaced by a reconstruction: the reconstruction error of the dictionary stays in it, and a token
whose latent does not change keeps its bits.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Dictionary, ScopedEdit, Site
from jax_interp.surgery.edits import value_with_gradient_of
from jax_interp.surgery.sparse_coder import SparseCoder, as_sparse_coder
from jax_interp.surgery.taps import static
from jax_interp.surgery.value_tokens import wide
from jax_interp.training.placement import automatic_rows

How = Literal["add", "clamp", "at_least"]


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class RememberValue(ScopedEdit):
    """Keep the value for a later edit, which reads latents of it. The value does not change."""

    name: str = static()

    def __call__(self, x: Array, site: Site) -> Array:
        site.carry(self.name, x)
        return x


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class WriteFeatures(ScopedEdit):
    """Steer a value with latents of a dictionary. `FeatureSteering.edits` makes this edit.

    Args:
      dictionary: the dictionary.
      features: the latents.
      activation: the activation of each latent at strength 1.
      strength: the factor of the activations: a number, or one for each row, `[batch, 1]`.
      how: "add", "clamp" or "at_least".
      remembered: the name of the value that the dictionary reads. None: it is the value that is edited.
      part: (i, n): the value is the i-th of n values that the dictionary writes side by side.
    """

    dictionary: Dictionary
    features: Int[Array, " chosen"]
    activation: Float[Array, " chosen"]
    strength: Float[Array, "..."] | float
    how: How = dataclasses.field(metadata={"static": True})
    remembered: str | None = static(default=None)
    part: tuple[int, int] = static(default=(0, 1))

    def __call__(self, y: Array, site: Site) -> Array:
        x = y if self.remembered is None else None
        if self.how == "add":
            return _steered(self, y, x)
        if as_sparse_coder(self.dictionary).whole_text and not site.tokens.are_whole_texts:
            raise UserError(
                f"{type(self.dictionary).__name__} reads earlier tokens too: give whole texts of one length, without "
                "padding and without a cache"
            )
        return _steered(self, y, site.carried(self.remembered) if self.remembered else x)

    def change(self, lead: tuple[int, ...], x: Array | None, dtype: jnp.dtype) -> Float[Array, "*lead chosen"]:
        """The change of the latents of each token of the value `x` that the dictionary reads."""
        strength = jnp.asarray(self.strength, dtype)
        # [batch, 1] goes with (batch, pos), also where the value has heads too
        strength = strength.reshape(*strength.shape, *(1,) * (len(lead) - strength.ndim if strength.ndim else 0))
        each = jnp.asarray(self.activation, dtype).reshape(*(1,) * len(lead), -1)
        wanted = jnp.broadcast_to(strength, lead)[..., None] * each
        if self.how == "add":
            return wanted
        assert x is not None  # it is known wherever latents count
        change = wanted - as_sparse_coder(self.dictionary).encode_some(x, self.features).astype(dtype)
        return change if self.how == "clamp" else jnp.maximum(change, jnp.zeros((), dtype))


@automatic_rows
def _steered(edit: WriteFeatures, y: Float[Array, "..."], x: Float[Array, "..."] | None) -> Float[Array, "..."]:
    """The steered value, in at least float32.

    Args:
      edit: the edit.
      y: the value that is steered.
      x: the value that the dictionary reads. None: it is not known, because nothing depends on it.
    """
    coder, (number, parts) = as_sparse_coder(edit.dictionary), edit.part
    width = directions_of(coder).shape[-1] // parts
    lead, dtype = _leading_axes(y, width), wide(y).dtype
    written = coder.written(x, edit.features, edit.change(lead, x, dtype)).astype(dtype)
    moved = wide(y) + written[..., number * width : (number + 1) * width].reshape(y.shape)
    # -0 + 0 is 0. A value that does not change keeps its bits, and the gradient goes through the sum.
    unchanged = jnp.broadcast_to(jnp.all(written == 0, axis=-1).reshape(*lead, *(1,) * (y.ndim - len(lead))), y.shape)
    return value_with_gradient_of(jnp.where(unchanged, wide(y), moved), moved)


def _leading_axes(y: Array, width: int) -> tuple[int, ...]:
    """The axes of the value without those of the vectors of this width."""
    if y.shape[-1] == width:
        return y.shape[:-1]
    if y.ndim > 1 and y.shape[-2] * y.shape[-1] == width:
        return y.shape[:-2]
    raise UserError(f"this dictionary writes values of width {width}, and the steered value has shape {list(y.shape)}")


def directions_of(coder: SparseCoder) -> Float[Array, "feature d_out"]:
    """The directions of a dictionary.

    Raises:
      UserError: it has none.
    """
    directions = coder.directions()
    if directions is None:
        raise UserError(
            f"the features of {type(coder).__name__} have no fixed direction, so it is not known what they write"
        )
    return directions
