"""Scores on whole passages of the text."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dashboards.collector import ScoredBatch
from jax_interp.surgery.taps import static


@dataclasses.dataclass(frozen=True)
class Passage:
    """The ends of some sequences, and the scores of all units on them. Tokens are -1 where not kept."""

    tokens: Int[np.ndarray, "seq pos"]
    scores: Float[np.ndarray, "unit seq pos"]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Passages:
    """The ends of `n` sequences of the first batch. The result is a `Passage`.

    The sequences with the largest sum of scores are chosen. The sum is over all units and over the last `length`
    positions.

    Args:
      n: the number of sequences.
      length: the number of last positions to keep of each sequence.
    """

    n: int = static(default=2)
    length: int = static(default=40)

    def of(self, batch: ScoredBatch) -> dict[str, Array]:
        scores = batch.scores[..., -self.length :]
        best = jnp.argsort(-jnp.sum(scores, axis=(0, 2)), stable=True)[: self.n]
        return {"tokens": jnp.where(batch.keep, batch.tokens, -1)[best, -self.length :], "scores": scores[:, best]}

    def merge(self, first: dict[str, Array], second: dict[str, Array]) -> dict[str, Array]:
        return first

    def result(self, state: dict[str, np.ndarray]) -> Passage:
        return Passage(state["tokens"], state["scores"])
