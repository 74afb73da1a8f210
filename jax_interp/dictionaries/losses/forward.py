"""What a training step has computed when the loss terms are evaluated."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jax_interp.dictionaries.codes import Code, DenseCode, EntryCode
from jax_interp.dictionaries.losses.term import Term, needs_pre_activations

if TYPE_CHECKING:
    from jax_interp.dictionaries.forms.dictionary import Dictionary


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Forward:
    """One batch through a dictionary: what a loss term is given."""

    dictionary: Dictionary
    x: Float[Array, "row d_in"]
    """What the dictionary read."""
    y: Float[Array, "row d_out"]
    """What it should write. For an SAE, `x`."""
    code: Code
    """Its latents, in the form that is trained on."""
    y_hat: Float[Array, "row d_out"]
    """What it wrote."""
    dead: Bool[Array, " feature"]
    """Features that have not fired for `DictionaryConfig.dead_after` tokens."""
    variance: Float[Array, ""]
    """E‖y - E y‖², measured once before training."""
    progress: Float[Array, ""]
    """The part of the run that is over: from 0 to 1."""
    key: Key[Array, ""]
    """For terms that draw something. Each step has another."""

    @property
    def error(self) -> Float[Array, "row d_out"]:
        """y - y_hat."""
        return self.y - self.y_hat

    @property
    def rows(self) -> Float[Array, ""]:
        """The number of rows, in the dtype of `x`."""
        return jnp.asarray(self.x.shape[0], self.x.dtype)


def pre_code(forward: Forward, term: Term) -> DenseCode | EntryCode:
    """The code with its pre-activations, all of them or those that take part. Raises UserError where there are none."""
    needs_pre_activations(term, forward.dictionary.activation)
    assert isinstance(forward.code, DenseCode | EntryCode)
    return forward.code


def dense_code(forward: Forward, term: Term) -> DenseCode:
    """The code, for a term that needs every pre-activation."""
    code = pre_code(forward, term)
    assert isinstance(code, DenseCode), f"{type(term).__name__} does not say `entries_suffice`"
    return code
