"""The base class of loss terms. A dictionary is trained on the sum of the terms in its config.

A new term is one file in this folder, or a file of your own:

    @TERMS.register
    @coefficient_only
    @dataclasses.dataclass(frozen=True)
    class Squares(Term):
        coefficient: float = 0.01

        def __call__(self, forward):
            return self.coefficient * jnp.sum(forward.code.values**2) / forward.rows

The coefficient is the only leaf of a term; all other fields are static. A sweep is therefore a `jax.vmap` over terms
with stacked coefficients.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.core.registry import Registry
from jax_interp.dictionaries.activations.activation import Activation

if TYPE_CHECKING:
    from jax_interp.dictionaries.losses.forward import Forward

T = TypeVar("T")


class Term:
    """Base class of loss terms. Subclasses are frozen dataclasses with a `coefficient`, and define `__call__`."""

    if TYPE_CHECKING:  # every subclass is a dataclass
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    coefficient: float
    entries_suffice: ClassVar[bool] = False
    """Whether the term depends only on latents for which `ElementwiseActivation.takes_part` is True. A training step
    may then leave out all others."""
    cross_layer: ClassVar[Literal["targets", "sources"] | None] = None
    """How the term applies to a cross-layer dictionary. "targets": once, to all targets together. "sources": to each
    source with the targets that it writes, summed over sources. None: it cannot be used."""
    reconstructs: ClassVar[bool] = False
    """Whether the term measures the error of the reconstruction."""

    @abc.abstractmethod
    def __call__(self, forward: Forward) -> Float[Array, ""]:
        """The value of the term for one batch, including the coefficient."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__")

    def check(self, activation: Activation) -> None:
        """Raise UserError if the term needs something that `activation` does not have."""

    def sse_divisor(self, variance: Float[Array, ""], width: int) -> Float[Array, ""] | float | None:
        """The number by which the term divides its sum of squared errors. None: it has no such sum.

        Args:
          variance: E‖y - E y‖² of the target.
          width: the width of the target.
        """
        return None


TERMS = Registry("loss term", Term)


def coefficient_only(kind: type[T]) -> type[T]:
    """Register a term as a pytree. `coefficient` is its only leaf; all other fields are static."""
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    data = [name for name in names if name == "coefficient"]
    return register_dataclass(kind, data, [name for name in names if name not in data])


def total(terms: Sequence[Term], forward: Forward) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of a training step.

    Returns:
      (sum of the terms, the value of each by its class name in snake case).
    """
    parts: dict[str, Array] = {}
    for term in terms:
        name = snake(type(term).__name__)
        parts[name] = parts.get(name, jnp.zeros((), forward.x.dtype)) + term(forward)
    return sum(parts.values(), jnp.zeros((), forward.x.dtype)), parts


def check_terms(activation: Activation, terms: Sequence[Term]) -> None:
    """Raise UserError if one of `terms` needs something that `activation` does not have."""
    for term in terms:
        term.check(activation)


def sse_unit(terms: Sequence[Term], variance: Float[Array, ""], width: int) -> Float[Array, ""] | float:
    """The number by which the first reconstruction term divides its sum of squared errors. 1 if there is none."""
    divisors = (term.sse_divisor(variance, width) for term in terms)
    return next((divisor for divisor in divisors if divisor is not None), 1.0)


def snake(name: str) -> str:
    """`FrozenDecoder` -> `frozen_decoder`, `AuxK` -> `aux_k`, `L1` -> `l1`."""
    cut = [i for i, c in enumerate(name) if i and c.isupper()]
    return "_".join(name[a:b] for a, b in zip([0, *cut], [*cut, len(name)])).lower()


def warmed_up(coefficient: float, forward: Forward, warmup: float) -> float | Float[Array, ""]:
    """The coefficient, multiplied by a factor that rises linearly from 0 to 1 in the first `warmup` of the run."""
    return coefficient * jnp.minimum(forward.progress / warmup, 1.0) if warmup else coefficient


def needs_pre_activations(term: Term, activation: Activation) -> None:
    """Raise UserError unless `activation` decides each latent from its own pre-activation."""
    if not activation.elementwise:
        raise UserError(
            f"{type(term).__name__} acts on pre-activations, and {type(activation).__name__} "
            "computes only those that are on: use it with ReLU, JumpReLU or Gated"
        )


def needs_thresholds(term: Term, activation: Activation) -> None:
    """Raise UserError unless `activation` has thresholds that are trained."""
    if not activation.trains_thresholds:
        raise UserError(f"{type(term).__name__} trains thresholds, {type(activation).__name__} has none: use JumpReLU")


def needs_gate(term: Term, activation: Activation) -> None:
    """Raise UserError unless `activation` has a gate."""
    if not activation.trains_gate:
        raise UserError(f"{type(term).__name__} trains a gate, {type(activation).__name__} has none: use Gated")
