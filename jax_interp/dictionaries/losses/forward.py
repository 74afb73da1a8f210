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
    """One batch through a dictionary. `x` is what was read and `y` what should be written (an SAE: the same).

    `variance` is E‖y - E y‖², measured once before training; `progress` rises from 0 to 1 over the run.
    """

    dictionary: Dictionary
    x: Float[Array, "row d_in"]
    y: Float[Array, "row d_out"]
    code: Code
    y_hat: Float[Array, "row d_out"]
    dead: Bool[Array, " feature"]
    variance: Float[Array, ""]
    progress: Float[Array, ""]
    key: Key[Array, ""]

    @property
    def error(self) -> Float[Array, "row d_out"]:
        return self.y - self.y_hat

    @property
    def rows(self) -> Float[Array, ""]:
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
