"""A statistic for `collect`: windows around positions that are drawn at random."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dashboards.collector import ScoredBatch
from jax_interp.dashboards.statistics import TopWindows
from jax_interp.dashboards.windows import Windows


@register_dataclass
@dataclasses.dataclass(frozen=True)
class DrawnWindows:
    """`k` positions of each unit, drawn without replacement, at most one of a sequence. The result is a `Windows`.

    A position has the rank log(weight) + Gumbel noise; those with the highest ranks are a draw in which each next
    position has a probability proportional to its weight (Efraimidis and Spirakis 2006, in the form of Gumbel noise).
    The noise is a function of the key and of the tokens of the sequence, so the draw does not depend on how the text is
    cut into batches; sequences with the same tokens have the same noise.

    Args:
      key: another key draws other positions.
      k: the number of windows for each unit.
      before: the number of tokens before the position.
      after: the number of tokens after the position.
      by_score: weights are the scores where they are above 0, and 0 elsewhere. False: all kept positions weigh 1.
    """

    key: Key[Array, ""]
    k: int = dataclasses.field(default=10, metadata={"static": True})
    before: int = dataclasses.field(default=10, metadata={"static": True})
    after: int = dataclasses.field(default=10, metadata={"static": True})
    by_score: bool = dataclasses.field(default=False, metadata={"static": True})

    def of(self, batch: ScoredBatch) -> dict[str, Array]:
        on = batch.keep[None] & ((batch.scores > 0) if self.by_score else jnp.ones(batch.scores.shape, bool))
        weight = jnp.log(jnp.where(on, batch.scores, 1.0)) if self.by_score else 0.0
        rank = jnp.where(on, weight + self._noise(batch), -jnp.inf)
        return self._ranked().of(dataclasses.replace(batch, scores=rank, activations=batch.scores))

    def merge(self, first: dict[str, Array], second: dict[str, Array]) -> dict[str, Array]:
        return self._ranked().merge(first, second)

    def result(self, state: dict[str, np.ndarray]) -> Windows:
        found = self._ranked().result(state)
        assert found.activations is not None
        peak = found.activations[..., self.before]
        return dataclasses.replace(found, peak=peak, scores=found.activations, activations=None)

    def _ranked(self) -> TopWindows:
        return TopWindows(self.k, self.before, self.after, one_per_sequence=True, threshold=-jnp.inf)

    def _noise(self, batch: ScoredBatch) -> Float[Array, "unit seq pos"]:
        tokens = batch.tokens.astype(jnp.uint32)
        step = jnp.uint32(0x01000193)
        digest, _ = jax.lax.scan(
            lambda total, column: ((total ^ column) * step, None),
            jnp.full(len(tokens), 0x811C9DC5, jnp.uint32),
            tokens.T,
        )
        keys = jax.vmap(lambda number: jax.random.fold_in(self.key, number))(digest)
        shape = (batch.scores.shape[0], tokens.shape[1])
        return jnp.moveaxis(jax.vmap(lambda key: jax.random.gumbel(key, shape))(keys), 0, 1)
