"""Statistics for `collect`: windows with the highest scores, tokens on which units fire, and whole passages."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.dashboards.collector import ScoredBatch


def _static(default: Any) -> Any:
    """A static field: another value compiles another program."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Windows:
    """The positions with the highest scores of each unit, in descending order, with the tokens around them.

    A window holds `before` tokens, the position itself, and some tokens after it. If a unit has fewer windows than
    requested, the other windows are blank: `peak` is 0 and `tokens` is -1.

    Args:
      peak: the score at the position itself.
      tokens: the tokens of the window. -1 outside the sequence and where not kept.
      scores: the scores of the unit in the window. 0 where `tokens` is -1.
      activations: the second value of `Scores` in the window. None if the score function does not return it.
      before: the index of the position itself in the window.
    """

    peak: Float[np.ndarray, "unit k"]
    tokens: Int[np.ndarray, "unit k window"]
    scores: Float[np.ndarray, "unit k window"]
    activations: Float[np.ndarray, "unit k window"] | None
    before: int


_BLANK = {"peak": -np.inf, "size": -1.0, "tokens": -1, "scores": 0.0, "activations": 0.0}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopWindows:
    """The `k` highest scores of each unit with their contexts. The result is a `Windows`.

    Equal scores are sorted by |activation|, if the score function returns activations, and then by position in the
    text.

    Args:
      k: the number of windows for each unit.
      before: the number of tokens before the position.
      after: the number of tokens after the position.
      one_per_sequence: keep only the best window of each sequence.
      threshold: only scores above it have a window. Use `-jnp.inf` for scores that can be negative.
    """

    k: int = _static(10)
    before: int = _static(12)
    after: int = _static(4)
    one_per_sequence: bool = _static(False)
    threshold: float | Float[Array, ""] = 0.0

    def of(self, batch: ScoredBatch) -> dict[str, Array]:
        units, length = batch.scores.shape[0], batch.tokens.shape[1]
        ranked = {"peak": jnp.where(batch.keep[None], batch.scores, -jnp.inf)}
        if batch.activations is not None:
            ranked["size"] = jnp.abs(batch.activations)
        if self.one_per_sequence:
            peak = jnp.max(ranked["peak"], axis=-1)
            best = jnp.where(ranked["peak"] == peak[..., None], ranked.get("size", 0.0), -1.0)
            place = jnp.argmax(best, axis=-1)
            seq = jnp.broadcast_to(jnp.arange(peak.shape[1])[None], peak.shape)
            ranked = {"peak": peak} | ({"size": jnp.max(best, axis=-1)} if "size" in ranked else {})
        else:
            ranked = {name: v.reshape(units, batch.tokens.size) for name, v in ranked.items()}
            seq, place = (
                jnp.broadcast_to(v[None], ranked["peak"].shape)
                for v in jnp.divmod(jnp.arange(batch.tokens.size), length)
            )
        order = _descending(ranked, min(self.k, seq.shape[1]))
        ranked, seq, place = jax.tree.map(lambda v: jnp.take_along_axis(v, order, axis=1), (ranked, seq, place))
        return self._pad(self._cut(batch, ranked, seq, place))

    def _cut(self, batch: ScoredBatch, ranked: dict[str, Array], seq: Array, place: Array) -> dict[str, Array]:
        """Cut the windows around these positions. A window is blank if its score is not above the threshold."""
        column = place[..., None] + jnp.arange(self.before + 1 + self.after)[None, None, :]
        unit = jnp.arange(batch.scores.shape[0])[:, None, None]
        padding = ((0, 0), (self.before, self.after))
        shown = jnp.pad(jnp.where(batch.keep, batch.tokens, -1), padding, constant_values=-1)
        found = ranked | {"tokens": shown[seq[..., None], column]}
        for name, values in (("scores", batch.scores), ("activations", batch.activations)):
            if values is not None:
                found[name] = jnp.pad(values, ((0, 0), *padding))[unit, seq[..., None], column]
        there = ranked["peak"] > self.threshold
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

    def result(self, state: dict[str, np.ndarray]) -> Windows:
        peak = np.where(np.isneginf(state["peak"]), 0.0, state["peak"])
        return Windows(peak, state["tokens"], state["scores"], state.get("activations"), self.before)


def _descending(ranked: dict[str, Array], k: int) -> Int[Array, "unit k"]:
    """The indices of the `k` best: sorted by peak, then by size, then the earliest first."""
    if "size" in ranked:
        return jnp.lexsort((-ranked["size"], -ranked["peak"]), axis=-1)[:, :k]
    return jax.lax.top_k(ranked["peak"], k)[1]


@dataclasses.dataclass(frozen=True)
class TokenShares:
    """Tokens that stand out where a unit has high scores.

    Args:
      tokens: token ids, in descending order of share · log lift. This product is the contribution of the token to a KL
        divergence: from the distribution of tokens in the text to their distribution weighted by scores.
      share: the fraction of the scores of the unit that falls on the token: Σ score over the token / Σ score.
      lift: the share divided by the frequency of the token in the text.
    """

    tokens: Int[np.ndarray, "unit n"]
    share: Float[np.ndarray, "unit n"]
    lift: Float[np.ndarray, "unit n"]


@dataclasses.dataclass(frozen=True)
class TokenSums:
    """Scores summed over each token of the vocabulary.

    Args:
      count: the number of kept positions with each token. For predicted tokens, the sum of their probabilities.
      total: the sum of the scores of each unit at these positions. For predicted tokens, weighted by probability.
    """

    count: Float[np.ndarray, " vocab"]
    total: Float[np.ndarray, "unit vocab"]

    def standing_out(self, n: int) -> TokenShares:
        """The `n` tokens of each unit with the largest share · log lift. Scores must not be negative."""
        tiny = np.finfo(float).tiny
        share = self.total / np.maximum(self.total.sum(axis=1, keepdims=True), tiny)
        lift = share / np.maximum(self.count / self.count.sum(), tiny)
        divergence = share * np.log(np.where(share > 0, lift, 1.0))
        best = np.argsort(-divergence, axis=1, kind="stable")[:, :n]
        return TokenShares(best, np.take_along_axis(share, best, 1), np.take_along_axis(lift, best, 1))


_Pair: TypeAlias = tuple[Float[Array, "..."], Float[Array, "..."]]
"""A sum as two float32 numbers, the second far smaller than the first. Together they hold 48 bits."""


def _as_pair(values: Float[Array, "..."] | Int[Array, "..."]) -> _Pair:
    if jnp.issubdtype(values.dtype, jnp.floating):
        return values, jnp.zeros_like(values)
    low = values & 0xFFF  # float32 holds 24 bits of an int32
    return (values - low).astype(jnp.float32), low.astype(jnp.float32)


def _add_pairs(first: _Pair, second: _Pair) -> _Pair:
    """The sum with the rounding error of each addition (Knuth, The Art of Computer Programming 2, 4.2.2)."""
    (a, rest_of_a), (b, rest_of_b) = first, second
    total = a + b
    part = total - a
    rest = (a - (total - part)) + (b - part) + (rest_of_a + rest_of_b)
    high = total + rest
    return high, jnp.where(jnp.isfinite(high), rest - (high - total), 0.0)


def _wide(pair: tuple[np.ndarray, np.ndarray]) -> Float[np.ndarray, "..."]:
    return np.add(*pair, dtype=np.float64)


class _Sums:
    """A statistic whose state is a dict of sums over batches. Scores are summed in float32."""

    def merge(self, first: dict[str, Array], second: dict[str, Array]) -> dict[str, Array]:
        return jax.tree.map(jnp.add, first, second)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InputTokens(_Sums):
    """Scores summed by the token at the position. The result is a `TokenSums`.

    Args:
      vocab: the size of the vocabulary. None: the last axis of the logits that the score function returns.
    """

    vocab: int | None = _static(None)

    def of(self, batch: ScoredBatch) -> dict[str, Array]:
        vocab = self.vocab
        if vocab is None:
            if batch.logits is None:
                raise UserError("InputTokens needs the size of the vocabulary: give vocab=, or Scores with logits")
            vocab = batch.logits.shape[-1]
        token, rows = batch.tokens.reshape(-1), _rows(batch)
        count = jax.ops.segment_sum(batch.keep.reshape(-1).astype(jnp.int32), token, vocab)
        return {"count": count, "total": jax.ops.segment_sum(rows.T, token, vocab).T}

    def result(self, state: dict[str, np.ndarray]) -> TokenSums:
        return TokenSums(state["count"].astype(np.int64), state["total"].astype(np.float64))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PredictedTokens(_Sums):
    """Scores summed by the predicted token. The result is a `TokenSums`.

    Each position counts for every token, weighted by the probability that the model gives to it as the next token. The
    score function must return logits.
    """

    def of(self, batch: ScoredBatch) -> dict[str, Array]:
        if batch.logits is None:
            raise UserError("PredictedTokens needs the model's output: return Scores with logits")
        kept = batch.keep.reshape(-1).astype(jnp.float32)
        probabilities = jax.nn.softmax(batch.logits.astype(jnp.float32), axis=-1).reshape(kept.size, -1)
        total = jnp.einsum("ur,rv->uv", _rows(batch), probabilities)
        return {"count": jnp.einsum("r,rv->v", kept, probabilities), "total": total}

    def result(self, state: dict[str, np.ndarray]) -> TokenSums:
        return TokenSums(state["count"].astype(np.float64), state["total"].astype(np.float64))


@dataclasses.dataclass(frozen=True)
class TokenContrast:
    """Scores at one token against scores at all other kept positions.

    Args:
      count: the number of kept positions with the token, and the number of other kept positions.
      mean: the mean score at each of the two kinds of positions, [2, unit].
      rate: the fraction of these positions at which the score is not 0, [2, unit].
    """

    count: tuple[int, int]
    mean: Float[np.ndarray, "2 unit"]
    rate: Float[np.ndarray, "2 unit"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OnToken:
    """Scores at one token against scores elsewhere. The result is a `TokenContrast`.

    Sums are float32 within a batch. Sums over batches have 48 bits, because a mean over millions of positions needs
    this.

    Args:
      token: the id of the token. It is data, so another token does not compile again.
    """

    token: int | Int[Array, ""]

    def of(self, batch: ScoredBatch) -> dict[str, _Pair]:
        here = batch.keep & (batch.tokens == self.token)
        places = jnp.stack([here, batch.keep & ~here])
        chosen = [jnp.where(place[None], batch.scores, 0.0) for place in places]
        sums = {
            "count": jnp.sum(places, axis=(1, 2), dtype=jnp.int32),
            "total": jnp.stack([jnp.sum(scores, axis=(1, 2)) for scores in chosen]),
            "fired": jnp.stack([jnp.sum(scores != 0, axis=(1, 2), dtype=jnp.int32) for scores in chosen]),
        }
        return {name: _as_pair(values) for name, values in sums.items()}

    def merge(self, first: dict[str, _Pair], second: dict[str, _Pair]) -> dict[str, _Pair]:
        return {name: _add_pairs(first[name], second[name]) for name in first}

    def result(self, state: dict[str, tuple[np.ndarray, np.ndarray]]) -> TokenContrast:
        count, total, fired = (_wide(state[name]) for name in ("count", "total", "fired"))
        on, elsewhere = count.astype(np.int64).tolist()
        per = np.maximum(count, 1)[:, None]
        return TokenContrast((on, elsewhere), total / per, fired / per)


@dataclasses.dataclass(frozen=True)
class Passage:
    """The ends of some sequences, and the scores of all units on them. Tokens are -1 where not kept."""

    tokens: Int[np.ndarray, "seq pos"]
    scores: Float[np.ndarray, "unit seq pos"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Passages:
    """The ends of `n` sequences of the first batch. The result is a `Passage`.

    The sequences with the largest sum of scores are chosen. The sum is over all units and over the last `length`
    positions.

    Args:
      n: the number of sequences.
      length: the number of last positions to keep of each sequence.
    """

    n: int = _static(2)
    length: int = _static(40)

    def of(self, batch: ScoredBatch) -> dict[str, Array]:
        scores = batch.scores[..., -self.length :]
        best = jnp.argsort(-jnp.sum(scores, axis=(0, 2)), stable=True)[: self.n]
        return {"tokens": jnp.where(batch.keep, batch.tokens, -1)[best, -self.length :], "scores": scores[:, best]}

    def merge(self, first: dict[str, Array], second: dict[str, Array]) -> dict[str, Array]:
        return first

    def result(self, state: dict[str, np.ndarray]) -> Passage:
        return Passage(state["tokens"], state["scores"])


def _rows(batch: ScoredBatch) -> Float[Array, "unit row"]:
    return batch.scores.reshape(batch.scores.shape[0], batch.tokens.size)  # with no units, -1 would be ambiguous
