"""Terms that ask for the target back. Each is Σ over the row's dimensions, mean over the batch, over the variance V:

    fvu   mean ‖y - ŷ‖² / V     (V measured once: the scale depends neither on d, nor the model, nor the batch at hand)
    sse   mean ‖y - ŷ‖²
    mse   mean ‖y - ŷ‖² / d

A coefficient tuned beside one of them serves beside another after multiplying by the same factor.
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
    return reduce_squares(error * error, forward, kind)


def reduce_squares(squares: Float[Array, "row d"], forward: Forward, kind: Kind) -> Float[Array, ""]:
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
    """`coefficient` · the error of the whole dictionary."""

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
    """The mean of the errors of nested dictionaries, made of the first n features for each n of `prefixes`; the last is
    always the whole (Bussmann et al. 2025, arXiv:2503.17547). One code serves them all, so the first features have to
    be useful without the later ones. `fractions` of the number of features; `random`: that many prefixes are drawn
    anew each step instead, n = m·u² with u uniform, which is short prefixes more often (Nabeshima 2024).

    Deviations from published code: Bussmann's mean has b_dec alone as a level too, here it is none; Nabeshima's sorts
    the latents by magnitude after each step, here they keep their places."""

    entries_suffice = True
    reconstructs = True
    coefficient: float = 1.0
    fractions: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
    random: int = 0
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
    """`coefficient` · the error with `factor` times as many latents as the activation has: a code that degrades
    gracefully when k is changed after training (Gao et al. 2024, §2.4 and appendix A.8)."""

    coefficient: float = 1 / 8
    factor: int = 4
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
