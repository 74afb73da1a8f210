"""The base class of loss terms. A dictionary is trained on the sum of the terms in its config.

A new term is one file of this folder (or of your own):

    @TERMS.register
    @coefficient_only
    @dataclasses.dataclass(frozen=True)
    class Squares(Term):
        coefficient: float = 0.01

        def __call__(self, forward):
            return self.coefficient * jnp.sum(forward.code.values**2) / forward.rows

The coefficient is the only leaf of a term and every other field is structure, so that `jax.vmap` over terms with
stacked coefficients is a sweep.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
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
    """Whether it depends only on latents that take part (`ElementwiseActivation.takes_part`). A step may then leave
    the others out."""
    cross_layer: ClassVar[Literal["targets", "sources"] | None] = None
    """How a cross-layer dictionary is trained with it: once, on all targets together; or on each source with the
    targets that it writes, summed over sources. None: not at all."""
    reconstructs: ClassVar[bool] = False
    """Whether it asks for the target back."""

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        """Its value for one batch, coefficient included."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__")

    def check(self, activation: Activation) -> None:
        """Raises UserError where it would train something that `activation` does not have."""

    def sse_divisor(self, variance: Float[Array, ""], width: int) -> Float[Array, ""] | float | None:
        """What it divides a sum of squared errors by. None: it has no such sum.

        Args:
          variance: E‖y - E y‖² of the target.
          width: the number of the target's columns.
        """
        return None


TERMS = Registry("loss term", Term)


def coefficient_only(kind: type[T]) -> type[T]:
    """Register a term as a pytree whose leaf is `coefficient`, the rest of its fields being structure."""
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    data = [name for name in names if name == "coefficient"]
    return jax.tree_util.register_dataclass(kind, data, [name for name in names if name not in data])


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
    """Raises UserError where one of `terms` would train something that `activation` does not have."""
    for term in terms:
        term.check(activation)


def sse_unit(terms: Sequence[Term], variance: Float[Array, ""], width: int) -> Float[Array, ""] | float:
    """What the first reconstruction among `terms` divides its sum of squared errors by. 1 where there is none."""
    divisors = (term.sse_divisor(variance, width) for term in terms)
    return next((divisor for divisor in divisors if divisor is not None), 1.0)


def snake(name: str) -> str:
    """`FrozenDecoder` -> `frozen_decoder`, `AuxK` -> `aux_k`, `L1` -> `l1`."""
    cut = [i for i, c in enumerate(name) if i and c.isupper()]
    return "_".join(name[a:b] for a, b in zip([0, *cut], [*cut, len(name)])).lower()


def warmed_up(coefficient: float, forward: Forward, warmup: float) -> float | Float[Array, ""]:
    """The coefficient, which rises linearly from 0 during the first part `warmup` of the run."""
    return coefficient * jnp.minimum(forward.progress / warmup, 1.0) if warmup else coefficient


def needs_pre_activations(term: Term, activation: Activation) -> None:
    """Raises UserError unless `activation` decides each latent from its own pre-activation."""
    if not activation.elementwise:
        raise UserError(
            f"{type(term).__name__} acts on pre-activations, and {type(activation).__name__} "
            "computes only those that are on: it goes with ReLU, JumpReLU or Gated"
        )


def needs_thresholds(term: Term, activation: Activation) -> None:
    """Raises UserError unless `activation` has thresholds that are trained."""
    if not activation.trains_thresholds:
        raise UserError(f"{type(term).__name__} trains thresholds, {type(activation).__name__} has none: use JumpReLU")


def needs_gate(term: Term, activation: Activation) -> None:
    """Raises UserError unless `activation` has a gate."""
    if not activation.trains_gate:
        raise UserError(f"{type(term).__name__} trains a gate, {type(activation).__name__} has none: use Gated")
