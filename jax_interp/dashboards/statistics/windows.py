"""Statistics that keep positions with their contexts: the highest scores, the lowest, and a uniform sample."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dashboards.collector import ScoredBatch
from jax_interp.dashboards.statistics.random_order import random_keys
from jax_interp.dashboards.windows import Windows
from jax_interp.surgery.taps import static

_BLANK = {"rank": -np.inf, "size": -1.0, "tokens": -1, "scores": 0.0, "activations": 0.0, "place": -1}


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Ranked(abc.ABC):
    """The `k` positions of each unit with the highest ranks, with their contexts."""

    k: int = static(default=10)
    before: int = static(default=12)
    after: int = static(default=4)

    @abc.abstractmethod
    def _ranks(self, batch: ScoredBatch) -> dict[str, Float[Array, "unit seq pos"]]:
        """`rank`, which is -inf where a position has no window; and `size`, which decides between equal ranks."""

    def _candidates(self, batch: ScoredBatch) -> tuple[dict[str, Array], Array, Array]:
        """Ranks, sequences and positions of the windows that may be kept, each [unit, candidate]."""
        ranked = {name: v.reshape(v.shape[0], batch.tokens.size) for name, v in self._ranks(batch).items()}
        seq, place = jnp.divmod(jnp.arange(batch.tokens.size), batch.tokens.shape[1])
        seq, place = (jnp.broadcast_to(v[None], ranked["rank"].shape) for v in (seq, place))
        return ranked, seq, place

    def of(self, batch: ScoredBatch) -> dict[str, Array]:
        found = lambda: self._found(batch)
        blank = lambda: {name: jnp.full(v.shape, _BLANK[name], v.dtype) for name, v in jax.eval_shape(found).items()}
        return jax.lax.cond(jnp.any(self._ranks(batch)["rank"] > -jnp.inf), found, blank)

    def _found(self, batch: ScoredBatch) -> dict[str, Array]:
        ranked, seq, place = self._candidates(batch)
        order = _descending(ranked, min(self.k, seq.shape[1]))
        ranked, seq, place = jax.tree.map(lambda v: jnp.take_along_axis(v, order, axis=1), (ranked, seq, place))
        return self._pad(self._cut(batch, ranked, seq, place))

    def _cut(self, batch: ScoredBatch, ranked: dict[str, Array], seq: Array, place: Array) -> dict[str, Array]:
        """Cut the windows around these positions. A window without a rank is blank."""
        column = place[..., None] + jnp.arange(self.before + 1 + self.after)[None, None, :]
        unit = jnp.arange(batch.scores.shape[0])[:, None, None]
        padding = ((0, 0), (self.before, self.after))
        shown = jnp.pad(jnp.where(batch.keep, batch.tokens, -1), padding, constant_values=-1)
        found = ranked | {"tokens": shown[seq[..., None], column]}
        for name, values in (("scores", batch.scores), ("activations", batch.activations)):
            if values is not None:
                found[name] = jnp.pad(values, ((0, 0), *padding))[unit, seq[..., None], column]
        found["place"] = jnp.stack([seq + jnp.asarray(batch.sequences, seq.dtype), place], axis=-1)
        there = ranked["rank"] > -jnp.inf
        return {
            name: jnp.where(there.reshape(*there.shape, *(1,) * (v.ndim - 2)), v, jnp.asarray(_BLANK[name], v.dtype))
            for name, v in found.items()
        }

    def _pad(self, found: dict[str, Array]) -> dict[str, Array]:
        """Add blank windows up to `k`, if a batch has fewer positions."""
        missing = {name: ((0, 0), (0, self.k - v.shape[1]), *(((0, 0),) * (v.ndim - 2))) for name, v in found.items()}
        return {name: jnp.pad(v, missing[name], constant_values=_BLANK[name]) for name, v in found.items()}

    def merge(self, first: dict[str, Array], second: dict[str, Array]) -> dict[str, Array]:
        both = {name: jnp.concatenate([first[name], second[name]], axis=1) for name in first}
        order = _descending(both, self.k)
        pick = lambda v: jnp.take_along_axis(v, order.reshape(*order.shape, *(1,) * (v.ndim - 2)), axis=1)
        return {name: pick(v) for name, v in both.items()}

    def _windows(self, state: dict[str, np.ndarray]) -> Windows:
        scores = state["scores"]
        return Windows(
            scores[..., self.before], state["tokens"], scores, state.get("activations"), self.before, state["place"]
        )


@register_dataclass
@dataclasses.dataclass(frozen=True)
class TopWindows(_Ranked):
    """The `k` highest scores of each unit with their contexts. The result is a `Windows`.

    Equal scores are sorted by |activation|, if the score function returns activations, and then by position in the
    text.

    Args:
      k: the number of windows for each unit.
      before: the number of tokens before the position.
      after: the number of tokens after the position.
      one_per_sequence: keep only the best window of each sequence.
      threshold: only scores above it have a window. Use `-jnp.inf` for scores that can be negative.
      lowest: the lowest scores, in ascending order. A window then has a score below -`threshold`.
    """

    one_per_sequence: bool = static(default=False)
    threshold: float | Float[Array, ""] = 0.0
    lowest: bool = static(default=False)

    def _ranks(self, batch: ScoredBatch) -> dict[str, Array]:
        scores = -batch.scores if self.lowest else batch.scores
        ranked = {"rank": jnp.where(batch.keep[None] & (scores > self.threshold), scores, -jnp.inf)}
        if batch.activations is not None:
            ranked["size"] = jnp.abs(batch.activations)
        return ranked

    def _candidates(self, batch: ScoredBatch) -> tuple[dict[str, Array], Array, Array]:
        if not self.one_per_sequence:
            return super()._candidates(batch)
        ranked = self._ranks(batch)
        rank = jnp.max(ranked["rank"], axis=-1)
        best = jnp.where(ranked["rank"] == rank[..., None], ranked.get("size", 0.0), -1.0)
        seq = jnp.broadcast_to(jnp.arange(rank.shape[1])[None], rank.shape)
        ranked = {"rank": rank} | ({"size": jnp.max(best, axis=-1)} if "size" in ranked else {})
        return ranked, seq, jnp.argmax(best, axis=-1)

    def result(self, state: dict[str, np.ndarray]) -> Windows:
        return self._windows(state)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A uniform sample of the positions at which each unit is on, in random order.

    Args:
      windows: the positions with their contexts. All of them, if a unit is on at no more than `k` positions.
      keys: the random key of each position, ascending. A position has one key for all units. inf for blank windows.
    """

    windows: Windows
    keys: Float[np.ndarray, "unit k"]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class UniformWindows(_Ranked):
    """A uniform sample, without replacement, of the positions at which each unit is on. The result is a `Sample`.

    Which positions are drawn is decided by a hash of the position's rank among the kept positions of the text
    (`random_keys`). So the sample depends on the text and on the seed, and not on batches or other units.

    Args:
      k: the size of the sample of each unit.
      before: the number of tokens before the position.
      after: the number of tokens after the position.
      threshold: a unit is on where |score| is above it.
      seed: another seed draws another sample.
    """

    threshold: float | Float[Array, ""] = 0.0
    seed: int | Int[Array, ""] = 0

    def _ranks(self, batch: ScoredBatch) -> dict[str, Array]:
        on = batch.keep[None] & (jnp.abs(batch.scores) > self.threshold)
        return {"rank": jnp.where(on, -random_keys(batch, self.seed)[None], -jnp.inf)}

    def result(self, state: dict[str, np.ndarray]) -> Sample:
        return Sample(self._windows(state), -state["rank"])


def _descending(ranked: dict[str, Any], k: int) -> Int[Array, "unit k"]:
    """The indices of the `k` best: sorted by rank, then by size, then the earliest first."""
    if "size" in ranked:
        return jnp.lexsort((-ranked["size"], -ranked["rank"]), axis=-1)[:, :k]
    return jax.lax.top_k(ranked["rank"], k)[1]
