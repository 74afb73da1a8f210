"""A random order of the kept positions of a text, which does not depend on how the text is cut into batches."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.dashboards.collector import ScoredBatch
from jax_interp.training.fingerprint import mix_bits


def random_keys(batch: ScoredBatch, seed: int | Int[Array, ""]) -> Float[Array, "seq pos"]:
    """A number from 0 to 2³² for each position: a hash of its rank among all kept positions of the text.

    The k positions with the smallest keys are a uniform sample of any set of positions, and samples of two parts of a
    text merge into the sample of both (bottom-k sampling). The rank counts kept positions only, so padding and empty
    sequences change nothing. Keys near 0, which decide, have all their 32 bits as float32.

    Args:
      batch: the batch, with the number of kept positions before it.
      seed: another seed gives another order.
    """
    kept = batch.keep.reshape(-1).astype(jnp.uint32)
    high, low = (jnp.asarray(word, jnp.uint32) for word in (batch.kept[0], batch.kept[1]))
    rank = low + (jnp.cumsum(kept) - kept)
    high = high + (rank < low).astype(jnp.uint32)
    keys = mix_bits(rank ^ mix_bits(high ^ mix_bits(jnp.asarray(seed).astype(jnp.uint32))))
    return keys.astype(jnp.float32).reshape(batch.keep.shape)
