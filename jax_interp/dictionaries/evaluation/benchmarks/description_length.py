"""The description length of a code: the bits that are needed to write down the quantised latents of an activation.

Ayonrinde, Pearce and Sharkey 2024 (arXiv:2410.11179): each latent is written by a code of its own, so the length is the
sum of entropies,

    bits = Σ_i H(q_i),        q_i = round(z_i ‖d_i‖ / step),

with the empirical distribution of q_i over rows. A dead latent needs no bits. `fvu` is the error of the reconstruction
from the quantised latents. The two belong together: fewer bits at the same error, or a lower error for the same bits,
is a better description. A dictionary is only compared with others at the same step.

Latents that fire together could be written in fewer bits than this sum. The entropy from n rows is too small by about
(number of values - 1) / (2 n ln 2) bits for each latent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.evaluation.benchmarks.baselines import Compared
from jax_interp.dictionaries.evaluation.benchmarks.measure import DICTIONARY, Measure, mean_over_reseeds
from jax_interp.dictionaries.sparse_coder import EncoderDecoder, as_sparse_coder

PARTS = 4
"""Parts of the rows. The interval is over them."""


@dataclasses.dataclass(frozen=True)
class DescriptionLength:
    """The figures of `description_length`."""

    bits: float
    """Bits per row, the sum over latents."""
    fvu: float
    """Σ‖x − x̂‖² / Σ‖x − x̄‖², with x̂ from the quantised latents."""
    by_latent: Float[np.ndarray, " latent"]
    """Bits per row of each latent."""
    rows: int
    step: float


def spread_of(rows: Sequence[Array]) -> float:
    """The standard deviation of a coordinate: the root of E‖x − x̄‖² / d. The usual step.

    Raises:
      UserError: there are no rows, or all rows are equal.
    """
    if not len(rows):
        raise UserError("no rows: give [row, d] arrays")
    x = np.concatenate([np.asarray(part, np.float64) for part in rows])
    spread = float(np.sqrt(np.mean((x - x.mean(0)) ** 2)))
    if not spread > 0:
        raise UserError("all rows are equal or not finite: there is nothing to describe")
    return spread


def description_length(coder: EncoderDecoder, rows: Sequence[Float[Array, "row d"]], step: float) -> DescriptionLength:
    """The description length of the latents of some rows.

    Args:
      coder: an object with `encode` and `decode` that reconstructs what it reads.
      rows: batches of activations.
      step: the width of a bin of z_i ‖d_i‖, in the unit of the activations, such as `spread_of(rows)`.

    Raises:
      UserError: there are no rows, the step is not positive, or latents are not finite.
    """
    if not step > 0:
        raise UserError(f"step={step} must be positive")
    if not len(rows):
        raise UserError("no rows: give [row, d] arrays")
    sparse = as_sparse_coder(coder)
    directions = sparse.directions()
    norms = None if directions is None else jnp.sqrt(jnp.sum(directions.astype(jnp.float32) ** 2, axis=-1))
    keys, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    n, error, first, second, latents = 0, 0.0, 0.0, 0.0, 0
    for x in rows:
        q, of_batch = _quantised(sparse, x, norms, jnp.asarray(step, jnp.float32))
        q, latents = np.asarray(q), q.shape[1]
        if not np.isfinite(q).all() or np.abs(q).max(initial=0) >= 2**31:
            raise UserError("latents are not finite, or too large for the step")
        row, column = np.nonzero(q)
        of_value = column.astype(np.int64) << 32 | (q[row, column].astype(np.int64) + 2**31)
        keys, counts = _merged(keys, counts, *np.unique(of_value, return_counts=True))
        values = np.asarray(x, np.float64)
        n += len(values)
        error, first, second = error + float(of_batch), first + values.sum(0), second + float((values**2).sum())
    variance = second - float(np.sum(np.asarray(first) ** 2)) / n
    if not variance > 0:
        raise UserError("all rows are equal: there is nothing to describe")
    by_latent = _entropies(keys >> 32, counts, n, latents)
    return DescriptionLength(float(by_latent.sum()), error / variance, by_latent, n, step)


def measures(compared: Compared, rows: Sequence[Float[Array, "row d"]], precision: float = 1.0) -> Iterator[Measure]:
    """Bits and error of a dictionary and its baselines. The interval is over disjoint parts of the rows.

    Args:
      compared: the dictionary and its baselines.
      rows: batches of activations.
      precision: the step in units of `spread_of(rows)`.

    Raises:
      UserError: there are fewer batches than parts.
    """
    if len(rows) < PARTS:
        raise UserError(f"{len(rows)} batches of rows: at least {PARTS} are needed, one for each part of the interval")
    step = precision * spread_of(rows)
    found = {
        name: [description_length(coders[part % len(coders)], rows[part::PARTS], step) for part in range(PARTS)]
        for name, coders in compared.columns()
    }
    texts = {
        "bits": ("description length, bits", f"bits to write a row's latents, rounded to {step:.3g} of activation"),
        "fvu": ("description length, FVU", "the error that is left when these bits are decoded; read it with the bits"),
    }
    for what, (name, meaning) in texts.items():
        of = {coder: mean_over_reseeds([getattr(d, what) for d in parts], "parts") for coder, parts in found.items()}
        assert DICTIONARY in of
        yield Measure(name, meaning, "lower", of)


@jax.jit
def _quantised(coder: Any, x: Array, norms: Array | None, step: Array) -> tuple[Array, Array]:
    """(q, Σ‖x − x̂‖² with x̂ from q)."""
    z = coder.encode(x).astype(jnp.float32)
    scale = jnp.ones((z.shape[1],), z.dtype) if norms is None else jnp.where(norms > 0, norms, jnp.ones_like(norms))
    q = jnp.round(z * scale[None, :] / step)
    x_hat = coder.output(x, q * step / scale[None, :])
    return q, jnp.sum((x.astype(jnp.float32) - x_hat.astype(jnp.float32)) ** 2)


def _merged(keys: np.ndarray, counts: np.ndarray, more: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    together, place = np.unique(np.concatenate([keys, more]), return_inverse=True)
    return together, np.bincount(place, np.concatenate([counts, times]), len(together)).astype(np.int64)


def _entropies(latent: np.ndarray, counts: np.ndarray, n: int, latents: int) -> Float[np.ndarray, " latent"]:
    """The entropy in bits of each latent, from the counts of its values that are not 0."""
    information = partial(_information, n)
    of_values = np.bincount(latent, information(counts), latents)
    zeros = n - np.bincount(latent, counts, latents)
    return of_values + information(zeros)


def _information(n: int, counts: np.ndarray) -> np.ndarray:
    """-p log₂ p of counts out of n; 0 for a count of 0."""
    p = counts / n
    return -p * np.log2(np.where(p > 0, p, 1))
