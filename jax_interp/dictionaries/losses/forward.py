"""`Forward`: the results of a forward pass, from which loss terms are computed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.codes import Code, DenseCode, EntryCode
from jax_interp.dictionaries.losses.term import Term, needs_pre_activations

if TYPE_CHECKING:
    from jax_interp.dictionaries.forms.dictionary import Dictionary


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Forward:
    """The forward pass of one batch through a dictionary. Loss terms get it as their argument."""

    dictionary: Dictionary
    x: Float[Array, "row d_in"]
    """The input of the dictionary."""
    y: Float[Array, "row d_out"]
    """The target. For an SAE it is `x`."""
    code: Code
    """The latents, in the form that is used in training."""
    y_hat: Float[Array, "row d_out"]
    """The reconstruction of `y`."""
    dead: Bool[Array, " feature"]
    """Features that have not fired for `DictionaryConfig.dead_after` tokens."""
    variance: Float[Array, ""]
    """E‖y - E y‖², measured once before training."""
    progress: Float[Array, ""]
    """The fraction of the training run that is completed, from 0 to 1."""
    key: Key[Array, ""]
    """A random key for terms that need one. It differs from step to step."""

    @property
    def error(self) -> Float[Array, "row d_out"]:
        """y - y_hat."""
        return self.y - self.y_hat

    @property
    def rows(self) -> Float[Array, ""]:
        """The number of rows, in the dtype of `x`."""
        return jnp.asarray(self.x.shape[0], self.x.dtype)


def pre_code(forward: Forward, term: Term) -> DenseCode | EntryCode:
    """The code with its pre-activations: all of them, or those that take part. Raises UserError if it has none."""
    needs_pre_activations(term, forward.dictionary.activation)
    assert isinstance(forward.code, DenseCode | EntryCode)
    return forward.code


def dense_code(forward: Forward, term: Term) -> DenseCode:
    """The code with every pre-activation, for terms that need all of them."""
    code = pre_code(forward, term)
    assert isinstance(code, DenseCode), f"{type(term).__name__} does not say `entries_suffice`"
    return code
