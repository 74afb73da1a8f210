"""How the latents of two dictionaries fire together on the same tokens (Balcells et al. 2024, arXiv:2410.08869).

Below, A and B are the events that a latent of the first and of the second dictionary is active: above its bound.

    pearson              correlation of the activations
    cosine               Σ ab / √(Σ a² Σ b²)
    sufficiency          #(A ∧ B) / #A            1: B is active whenever A is
    necessity            #(A ∧ B) / #B            1: B is active only where A is
    jaccard              #(A ∧ B) / #(A ∨ B)
    mutual_information   of A and B, in nats

All are tables [latent of the first, latent of the second], and 0 where they are not defined (a dead latent). A table of
n₁ x n₂ latents has 8 n₁ n₂ bytes, and the sums hold three of them: 14 GB for two dictionaries of 24,576.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.evaluation.batch_sums import add_batch
from jax_interp.dictionaries.sparse_coder import EncoderDecoder, SparseCoder, as_sparse_coder

Table = Float[np.ndarray, "first second"]


@dataclasses.dataclass(frozen=True)
class CoActivation:
    """Sums over tokens, from which all measures follow.

    Args:
      tokens: the number of tokens.
      sums: Σa and Σb of each latent.
      squares: Σa² and Σb².
      fires: the number of tokens on which each latent is active.
      products: Σab of each pair.
      together: the number of tokens on which both are active.
    """

    tokens: int
    sums: tuple[np.ndarray, np.ndarray]
    squares: tuple[np.ndarray, np.ndarray]
    fires: tuple[np.ndarray, np.ndarray]
    products: Table
    together: Table

    def pearson(self) -> Table:
        """The correlation of the activations."""
        (a, b), (aa, bb), n = self.sums, self.squares, self.tokens
        covariance = self.products / n - np.outer(a, b) / n**2
        first, second = (np.maximum(square / n - (one / n) ** 2, 0) for one, square in ((a, aa), (b, bb)))
        # a variance that is only the rounding of its sums is 0
        first, second = (np.where(v > 1e-6 * square / n, v, 0) for v, square in ((first, aa), (second, bb)))
        return np.clip(_ratio(covariance, np.sqrt(np.outer(first, second))), -1, 1)

    def cosine(self) -> Table:
        """The cosine of the activations over tokens."""
        return _ratio(self.products, np.sqrt(np.outer(*self.squares)))

    def sufficiency(self) -> Table:
        """How often the second is active where the first is."""
        return _ratio(self.together, self.fires[0][:, None])

    def necessity(self) -> Table:
        """How often the first is active where the second is."""
        return _ratio(self.together, self.fires[1][None, :])

    def jaccard(self) -> Table:
        """How often both are active where at least one is."""
        return _ratio(self.together, self.fires[0][:, None] + self.fires[1][None, :] - self.together)

    def mutual_information(self) -> Table:
        """The mutual information of the events "the first is active" and "the second is active", in nats."""
        n, (a, b) = self.tokens, (one.astype(np.float64) for one in self.fires)
        both = self.together
        total = np.zeros_like(both, np.float64)
        for cell, p, q in (
            (both, a[:, None], b[None, :]),
            (a[:, None] - both, a[:, None], n - b[None, :]),
            (b[None, :] - both, n - a[:, None], b[None, :]),
            (n - a[:, None] - b[None, :] + both, n - a[:, None], n - b[None, :]),
        ):
            ratio = _ratio(cell * n, p * q)
            total += cell / n * np.log(np.where(ratio > 0, ratio, 1.0))
        return np.maximum(total, 0)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    return np.divide(a, b, out=np.zeros(a.shape), where=b > 0)


def co_activation(
    first: EncoderDecoder,
    second: EncoderDecoder,
    rows: Iterable[tuple[Float[Array, "row d_first"], Float[Array, "row d_second"]]],
    bound: float | tuple[Float[Array, " first"], Float[Array, " second"]] = 0.0,
) -> CoActivation:
    """Measure how the latents of two dictionaries fire together.

    Args:
      first: a dictionary.
      second: another one, of the next layer or of a later checkpoint.
      rows: batches of pairs: the activations that the two read, on the same tokens.
      bound: a latent is active above it: a number, or a number for each latent (`relative_bound`).

    Raises:
      UserError: there are no rows, or the two parts of a batch have different numbers of rows; or latents are not
        finite.
    """
    coders = (as_sparse_coder(first), as_sparse_coder(second))
    bounds = bound if isinstance(bound, tuple) else (bound, bound)
    bounds = tuple(jnp.asarray(one, jnp.float32) for one in bounds)
    total = None
    for x, y in rows:
        if len(x) != len(y):
            raise UserError(f"{len(x)} rows of the first and {len(y)} of the second: give values of the same tokens")
        total = add_batch(total, _sums(*coders, x, y, *bounds))
    if total is None:
        raise UserError("no rows: give an iterable of pairs of [row, d] arrays that has not been used up")
    if not all(np.isfinite(one).all() for one in total["sums"]):
        raise UserError("some latents are NaN or infinite on these rows")
    pair = lambda name: (total[name][0], total[name][1])
    return CoActivation(
        int(total["tokens"]), pair("sums"), pair("squares"), pair("fires"), total["products"], total["together"]
    )


@jax.jit
def _sums(first: SparseCoder, second: SparseCoder, x: Array, y: Array, low: Array, high: Array) -> dict:
    a, b = first.encode(x).astype(jnp.float32), second.encode(y).astype(jnp.float32)
    on_a, on_b = a > jnp.broadcast_to(low, a.shape), b > jnp.broadcast_to(high, b.shape)
    product = lambda u, v: jnp.matmul(u.T, v, precision=jax.lax.Precision.HIGHEST)
    column = lambda *both: [jnp.sum(one, axis=0) for one in both]
    return {
        "tokens": jnp.asarray(len(a), jnp.int32),
        "sums": column(a, b),
        "squares": column(a * a, b * b),
        "fires": [jnp.sum(on, axis=0, dtype=jnp.int32) for on in (on_a, on_b)],
        "products": product(a, b),
        "together": product(on_a.astype(jnp.float32), on_b.astype(jnp.float32)),
    }


def relative_bound(
    dictionary: EncoderDecoder, rows: Iterable[Float[Array, "row d"]], fraction: float = 0.2
) -> Float[Array, " feature"]:
    """`fraction` of the largest activation of each latent: the paper's "relative activation"."""
    largest = jax.jit(lambda coder, x: jnp.max(coder.encode(x).astype(jnp.float32), axis=0))
    coder, found = as_sparse_coder(dictionary), None
    for x in rows:
        found = largest(coder, x) if found is None else jnp.maximum(found, largest(coder, x))
    if found is None:
        raise UserError("no rows: give an iterable of [row, d] arrays that has not been used up")
    return fraction * jnp.maximum(found, 0.0)
