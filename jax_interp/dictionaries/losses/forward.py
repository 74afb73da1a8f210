"""What a step has computed when its losses are asked, and the total of a tuple of them.

A loss is a term: `term(forward) -> scalar`, its coefficient included. A dictionary is trained on the sum of the terms
in its config, so a new objective is a new term, and an old one with a term more is a longer tuple. A term whose class
says `entries_suffice` depends on no latent that does not take part (activations/): where all do, a step may leave those
out. Coefficients are
leaves of a term and everything else is structure: `jax.vmap` over terms with stacked coefficients is a sweep.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.codes import Code, DenseCode, EntryCode

T = TypeVar("T")
Term = Callable[["Forward"], Float[Array, ""]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Forward:
    """One batch through a dictionary. `x` is what was read and `y` what should be written (an SAE: the same).

    `variance` is E‖y - E y‖², measured once before training; `progress` rises from 0 to 1 over the run.
    """

    dictionary: Any
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


def pre_code(forward: Forward, asker: Any) -> DenseCode | EntryCode:
    """The code with its pre-activations, all or those that take part. UserError where the activation keeps none."""
    if not isinstance(forward.code, DenseCode | EntryCode) or hasattr(forward.dictionary.activation, "k"):
        raise UserError(
            f"{type(asker).__name__} acts on pre-activations, and {type(forward.dictionary.activation).__name__} "
            "computes only those that are on: it goes with ReLU, JumpReLU or Gated"
        )
    return forward.code


def dense_code(forward: Forward, asker: Any) -> DenseCode:
    """The code, for a term that needs every pre-activation."""
    code = pre_code(forward, asker)
    assert isinstance(code, DenseCode), f"{type(asker).__name__} does not say `entries_suffice`"
    return code


def total(terms: Sequence[Term], forward: Forward) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """(sum of the terms, each by the name of its class in snake case)."""
    parts: dict[str, Array] = {}
    for term in terms:
        name = snake(type(term).__name__)
        parts[name] = parts.get(name, jnp.zeros((), forward.x.dtype)) + term(forward)
    return sum(parts.values(), jnp.zeros((), forward.x.dtype)), parts


def snake(name: str) -> str:
    """`FrozenDecoder` -> `frozen_decoder`, `AuxK` -> `aux_k`, `L1` -> `l1`."""
    cut = [i for i, c in enumerate(name) if i and c.isupper()]
    return "_".join(name[a:b] for a, b in zip([0, *cut], [*cut, len(name)])).lower()


def coefficient_only(kind: type[T]) -> type[T]:
    """Register a term as a pytree whose leaf is `coefficient`, the rest of its fields being structure."""
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    data = [name for name in names if name == "coefficient"]
    return jax.tree_util.register_dataclass(kind, data, [name for name in names if name not in data])


def warmed(coefficient: float, forward: Forward, warmup: float) -> Any:
    """The coefficient, rising linearly from 0 over the first `warmup` of the run."""
    return coefficient * jnp.minimum(forward.progress / warmup, 1.0) if warmup else coefficient
