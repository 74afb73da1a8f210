"""Loss terms for the error of the reconstruction. `kind` sets how squared errors become one number:

    fvu   mean ‖y - ŷ‖² / V     V: the variance, measured once. The scale does not depend on width, model or batch
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
    """Reduce the squares of `error` to one number."""
    return reduce_squares(error * error, forward, kind)


def reduce_squares(squares: Float[Array, "row d"], forward: Forward, kind: Kind) -> Float[Array, ""]:
    """Sum `squares` over columns, take the mean over rows, and divide the result according to `kind`."""
    sse = jnp.sum(squares) / forward.rows
    if kind == "fvu":
        return sse / forward.variance
    return sse if kind == "sse" else sse / jnp.asarray(squares.shape[1], squares.dtype)


def divisor(kind: Kind, variance: Float[Array, ""], width: int) -> Float[Array, ""] | float:
    """The number by which `kind` divides a sum of squared errors."""
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

    A nested dictionary consists of the first n features. The last one has all features. All share one code, so the
    first features must be useful without the later ones.

    Differences from published code: the mean of Bussmann et al. also includes the error of b_dec alone. Nabeshima's
    code sorts latents by magnitude after each step; this code does not.
    """

    entries_suffice = True
    reconstructs = True
    coefficient: float = 1.0
    fractions: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
    """n / (number of features) for each nested dictionary but the last: ascending, above 0 and below 1."""
    random: int = 0
    """If above 0: the number of nested dictionaries. All but the last are drawn at each step (Nabeshima 2024).
    `fractions` is not used. n = m·u², where m is the number of features and u is uniform, so small n are more
    frequent."""
    kind: Kind = "fvu"

    def __post_init__(self) -> None:
        ascending = list(self.fractions) == sorted(set(self.fractions))
        if self.random < 0 or not ascending or not all(0 < f < 1 for f in self.fractions):
            raise UserError(
                f"Matryoshka(fractions={self.fractions}, random={self.random}): fractions must be ascending, above 0 "
                "and below 1 (the whole dictionary is added), and random at least 0"
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
    """`coefficient` · the error with `factor` times as many latents on. It allows k to be changed after training (Gao
    et al. 2024, §2.4, appendix A.8)."""

    coefficient: float = 1 / 8
    factor: int = 4
    """The number of latents on is multiplied by this factor."""
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


@TERMS.register
@coefficient_only
@dataclasses.dataclass(frozen=True)
class OverNorm(Term):
    """λ R / N with R = mean ‖x - x̂‖² and N = mean ‖x‖. The model could lower R by making its values smaller. The
    gradient of N counteracts this. As published, N is not squared."""

    coefficient: float = 3.0

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        sse = jnp.sum(forward.error * forward.error) / forward.rows
        square = jnp.sum(forward.y * forward.y, axis=-1)
        some = square > 0
        norm = jnp.where(some, jnp.sqrt(jnp.where(some, square, jnp.ones_like(square))), jnp.zeros_like(square))
        return self.coefficient * sse / jnp.mean(norm)
