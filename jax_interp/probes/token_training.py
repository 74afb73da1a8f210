"""What the kinds that read sequences share: rows that are safe to compute with, the loss, and the memory.

The loss of all of them is that of scikit-learn's logistic regression, divided by C Σ weights:

    Σᵢ vᵢ log(1 + exp(-sᵢ zᵢ)) / Σᵢ vᵢ + ‖w‖² / (2 C Σᵢ vᵢ),        sᵢ = ±1, zᵢ the score, vᵢ the weight of row i

w acts on columns that were standardised on the training tokens. Standardised activations are never stored: their mean
and scale are folded into the first layer. So all strengths, seeds and splits share one copy of the activations, and
each adds only its readings: `[example, pos]` numbers for each column of its first layer.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.kind import Kind, Rows, SequenceRows
from jax_interp.probes.probe import Probe


@register_dataclass
@dataclasses.dataclass(frozen=True)
class CentredTokens:
    """Tokens without a common vector, so that float32 keeps its digits where one column is far from 0.

    Args:
      x: activation - centre at tokens that count of examples that are used; 0 elsewhere.
      read: the tokens that count.
      y: the class of each example.
      token_y: the class of each token, -1 where there is none.
      weight: the weight of each example.
      centre: the mean over these tokens.
    """

    x: Float[Array, "example pos d"]
    read: Bool[Array, "example pos"]
    y: Int[Array, " example"]
    token_y: Int[Array, "example pos"] | None
    weight: Float[Array, " example"]
    centre: Float[Array, " d"]

    @property
    def token_weight(self) -> Float[Array, "example pos"]:
        """The weight of the example at tokens that count, 0 elsewhere."""
        return jnp.where(self.read, self.weight[:, None], 0)

    def moments(self) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Mean and standard deviation of the training tokens, for each column. A constant column has scale 1."""
        high, w = jax.lax.Precision.HIGHEST, self.token_weight
        total = jnp.sum(w)
        mean = jnp.einsum("np,npd->d", w, self.x, precision=high) / total
        square = jnp.einsum("np,npd->d", w, jnp.square(self.x), precision=high) / total
        variance = square - jnp.square(mean)
        varies = variance > 1e-6 * square + 1e-12 * jnp.square(self.centre)
        return mean, jnp.sqrt(jnp.where(varies, variance, 1))


def centred_tokens(data: SequenceRows, used: Bool[Array, " example"]) -> CentredTokens:
    """The tokens of the examples that are used. The content of the others may be anything, NaN too."""
    read = data.read & used[:, None]
    x = jnp.where(read[..., None], data.x.astype(jnp.float32), 0)
    centre = x.sum(axis=(0, 1)) / jnp.maximum(read.sum(), 1).astype(jnp.float32)
    x = jnp.where(read[..., None], x - centre[None, None, :], 0)
    return CentredTokens(x, read, data.y, data.token_y, data.weight, centre)


def centred_rows(data: Rows, used: Bool[Array, " example"]) -> CentredTokens:
    """One vector for each example, as sequences of one token."""
    read = jnp.ones((len(data.x), 1), bool)
    return centred_tokens(SequenceRows(data.x[:, None], read, data.y, None, data.weight), used)


class SequenceKind(Kind):
    """A kind that reads sequences. Its `fit_tokens` gets tokens that are finite everywhere."""

    takes: ClassVar[Literal["rows", "pairs", "sequences"]] = "sequences"

    @abc.abstractmethod
    def fit_tokens(self, data: CentredTokens, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> Probe:
        """Find one probe for the raw activations. Args as in `Kind.fit`."""

    def fit(self, data: Any, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> Probe:
        if isinstance(data, SequenceRows):
            data = centred_tokens(data, data.weight > 0)
        return self.fit_tokens(data, strength, key)

    def fit_grid(self, data: Any, y: Array, weight: Array, strengths: Array | None, keys: Key[Array, " seed"]) -> Probe:
        shared = centred_tokens(data, (weight > 0).any(axis=0))
        return fit_flat_grid(self, shared, y, weight, strengths, keys)


def fit_flat_grid(
    kind: Kind, data: CentredTokens, y: Array, weight: Array, strengths: Array | None, keys: Key[Array, " seed"]
) -> Probe:
    """`Kind.fit_grid` with one `vmap` over all problems in place of four, which takes less time to trace."""
    C = jnp.ones(1, jnp.float32) if strengths is None else strengths
    shape = (len(y), len(weight), len(C), len(keys))

    def one(of: Int[Array, " 4"]) -> Probe:
        a, b, c, d = of
        return kind.fit(dataclasses.replace(data, y=y[a], weight=weight[b]), C[c], keys[d])

    probes = jax.vmap(one)(jnp.indices(shape).reshape(4, -1).T)
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), probes)


def l2_factor(C: Float[Array, ""] | None, weight: Float[Array, "*row"]) -> Float[Array, ""]:
    """1 / (2 C Σ v), the factor of ‖w‖² in the loss. 0 without a C."""
    return jnp.zeros((), jnp.float32) if C is None else 1 / (2 * C * jnp.sum(weight))


def mean_one(weight: Float[Array, "*row"]) -> Float[Array, "*row"]:
    """Weights with the mean 1, so that the mean of weighted losses is Σ v l / Σ v."""
    return weight / jnp.mean(weight)


def balanced(weight: Float[Array, "*row"], positive: Bool[Array, "*row"]) -> Float[Array, "*row"]:
    """Weights under which both classes weigh the same, with an unchanged sum (scikit-learn's "balanced")."""
    total = jnp.sum(weight)
    of = lambda labels: total / (2 * jnp.maximum(jnp.sum(jnp.where(labels, weight, 0)), jnp.finfo(jnp.float32).tiny))
    return weight * jnp.where(positive, of(positive), of(~positive))


def log_loss(z: Float[Array, "*row"], positive: Bool[Array, "*row"], weight: Float[Array, "*row"]) -> Float[Array, ""]:
    """The mean of weight · log(1 + exp(∓z)). Rows of weight 0 have no influence, whatever their score is."""
    signed = jnp.where(weight > 0, jnp.where(positive, -z, z), 0)
    return jnp.mean(weight * jax.nn.softplus(signed))


def over_examples(
    f: Callable[[Any, Any], Array], x: Array, read: Array, at_once: int | None
) -> Float[Array, " example"]:
    """f(x, read) for `at_once` examples after another. The backward pass computes each piece again."""
    if at_once is None or at_once >= len(x):
        return f(x, read)
    piece = jax.checkpoint(lambda row: f(row[0][None], row[1][None])[0])
    return jax.lax.map(piece, (x, read), batch_size=at_once)


def check_strengths(C: tuple[float, ...], **counts: int | None) -> None:
    """Raises UserError unless all C are positive, and all counts at least 1."""
    if not C or any(not c > 0 for c in C):
        raise UserError(f"C={C} must be positive numbers: each is the inverse strength of a penalty")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(f"{name}={count} must be at least 1")
