"""Terms for the error of the reconstruction. `kind` says how squared errors become one number:

    fvu   mean ‖y - ŷ‖² / V     V is the variance, measured once, so that the scale depends on no width, model or batch
    sse   mean ‖y - ŷ‖²
    mse   mean ‖y - ŷ‖² / d

Means are over rows. When `kind` changes, multiply the coefficients of the other terms by the same factor.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations.activation import Activation
from jax_interp.dictionaries.losses.forward import Forward
from jax_interp.dictionaries.losses.term import TERMS, Term, coefficient_only
from jax_interp.dictionaries.nested import decode_nested

Kind = Literal["fvu", "sse", "mse"]


def squared_error_loss(error: Float[Array, "row d"], forward: Forward, kind: Kind) -> Float[Array, ""]:
    """The squares of `error` as one number."""
    return reduce_squares(error * error, forward, kind)


def reduce_squares(squares: Float[Array, "row d"], forward: Forward, kind: Kind) -> Float[Array, ""]:
    """`squares` as one number: summed over columns, averaged over rows, divided as `kind` says."""
    sse = jnp.sum(squares) / forward.rows
    if kind == "fvu":
        return sse / forward.variance
    return sse if kind == "sse" else sse / jnp.asarray(squares.shape[1], squares.dtype)


def divisor(kind: Kind, variance: Float[Array, ""], width: int) -> Float[Array, ""] | float:
    """What a sum of squared errors is divided by."""
    return {"fvu": variance, "sse": 1.0, "mse": float(width)}[kind]


@TERMS.register
@coefficient_only
@dataclasses.dataclass(frozen=True)
class Reconstruction(Term):
    """`coefficient` · the squared error of the reconstruction."""

    cross_layer = "targets"
    entries_suffice = True
    reconstructs = True
    coefficient: float = 1.0
    kind: Kind = "fvu"

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        return self.coefficient * squared_error_loss(forward.error, forward, self.kind)

    def sse_divisor(self, variance: Float[Array, ""], width: int) -> Float[Array, ""] | float:
        return divisor(self.kind, variance, width)


@TERMS.register
@coefficient_only
@dataclasses.dataclass(frozen=True)
class Matryoshka(Term):
    """`coefficient` · the mean of the errors of nested dictionaries (Bussmann et al. 2025, arXiv:2503.17547).

    Each nested dictionary has the first n features; the last has all of them. They share one code, so the first
    features must be useful without the later ones.

    Differences from published code: Bussmann's mean also contains b_dec alone. Nabeshima's code sorts latents by
    magnitude after each step; here they keep their places.
    """

    entries_suffice = True
    reconstructs = True
    coefficient: float = 1.0
    fractions: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
    """n over the number of features, ascending, each above 0 and below 1."""
    random: int = 0
    """Above 0: so many nested dictionaries, all but the last drawn at each step, n = m·u² with u uniform, m being the
    number of features. Small n are drawn more often (Nabeshima 2024)."""
    kind: Kind = "fvu"

    def __post_init__(self) -> None:
        ascending = list(self.fractions) == sorted(set(self.fractions))
        if self.random < 0 or not ascending or not all(0 < f < 1 for f in self.fractions):
            raise UserError(
                f"Matryoshka(fractions={self.fractions}, random={self.random}): fractions ascending, above 0 and below "
                "1 (the whole is added), random at least 0"
            )

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        dictionary = forward.dictionary
        base = forward.y - dictionary.b_dec[None, :]
        if dictionary.W_skip is not None:
            base = base - forward.x @ dictionary.W_skip
        explained = decode_nested(forward.code, dictionary.W_dec, self._ends(forward))
        losses = [squared_error_loss(base - part, forward, self.kind) for part in explained]
        losses.append(squared_error_loss(forward.error, forward, self.kind))
        return self.coefficient * jnp.mean(jnp.stack(losses))

    def sse_divisor(self, variance: Float[Array, ""], width: int) -> Float[Array, ""] | float:
        return divisor(self.kind, variance, width)

    def _ends(self, forward: Forward) -> list[int] | Int[Array, " prefix"]:
        m = forward.dictionary.n_features
        if self.random:
            u = jax.random.uniform(forward.key, (self.random - 1,))
            return jnp.sort(jnp.maximum((m * u * u).astype(jnp.int32), 1))
        return [max(round(m * f), 1) for f in self.fractions]


@TERMS.register
@coefficient_only
@dataclasses.dataclass(frozen=True)
class MultiTopK(Term):
    """`coefficient` · the error with more latents on, so that k can be changed after training (Gao et al. 2024, §2.4,
    appendix A.8)."""

    coefficient: float = 1 / 8
    factor: int = 4
    """How many times as many latents."""
    kind: Kind = "fvu"

    def check(self, activation: Activation) -> None:
        if activation.k is None:
            raise UserError(f"MultiTopK needs an activation with a k, not {type(activation).__name__}")

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        dictionary = forward.dictionary
        self.check(dictionary.activation)
        activation = dictionary.activation.widened(self.factor, dictionary.n_features, forward.x.dtype)
        wider = dataclasses.replace(dictionary, activation=activation)
        y_hat = wider.reconstruct(activation.encode_batch(wider, forward.x), forward.x)
        return self.coefficient * squared_error_loss(forward.y - y_hat, forward, self.kind)
