"""Statistics by token: on which tokens units have high scores, and which predicted tokens go with them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dashboards.collector import ScoredBatch
from jax_interp.dashboards.statistics.sums import Pair, Sums, as_pair, wide_sum
from jax_interp.dashboards.statistics.sums import rows as flat
from jax_interp.surgery.taps import static


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


@register_dataclass
@dataclasses.dataclass(frozen=True)
class InputTokens(Sums):
    """Scores summed by the token at the position. The result is a `TokenSums`.

    Args:
      vocab: the size of the vocabulary. None: the last axis of the logits that the score function returns.
    """

    vocab: int | None = static(default=None)

    def of(self, batch: ScoredBatch) -> dict[str, Pair]:
        vocab = self.vocab
        if vocab is None:
            if batch.logits is None:
                raise UserError("InputTokens needs the size of the vocabulary: give vocab=, or Scores with logits")
            vocab = batch.logits.shape[-1]
        token, rows = batch.tokens.reshape(-1), flat(batch)
        count = jax.ops.segment_sum(batch.keep.reshape(-1).astype(jnp.int32), token, vocab)
        total = jax.ops.segment_sum(rows.T, token, vocab).T
        return {"count": as_pair(count), "total": as_pair(total)}

    def result(self, state: dict[str, tuple[np.ndarray, np.ndarray]]) -> TokenSums:
        return TokenSums(wide_sum(state["count"]).astype(np.int64), wide_sum(state["total"]))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class PredictedTokens(Sums):
    """Scores summed by the predicted token. The result is a `TokenSums`.

    Each position counts for every token, weighted by the probability that the model gives to it as the next token. The
    score function must return logits.
    """

    def of(self, batch: ScoredBatch) -> dict[str, Pair]:
        if batch.logits is None:
            raise UserError("PredictedTokens needs the model's output: return Scores with logits")
        kept = batch.keep.reshape(-1).astype(jnp.float32)
        probabilities = jax.nn.softmax(batch.logits.astype(jnp.float32), axis=-1).reshape(kept.size, -1)
        total = jnp.einsum("ur,rv->uv", flat(batch), probabilities)
        return {"count": as_pair(jnp.einsum("r,rv->v", kept, probabilities)), "total": as_pair(total)}

    def result(self, state: dict[str, tuple[np.ndarray, np.ndarray]]) -> TokenSums:
        return TokenSums(wide_sum(state["count"]), wide_sum(state["total"]))


@dataclasses.dataclass(frozen=True)
class TokenContrast:
    """Scores at one token, or at any of several, against scores at all other kept positions.

    Args:
      count: the number of kept positions with the token, and the number of other kept positions.
      mean: the mean score at each of the two kinds of positions, [2, unit].
      rate: the fraction of these positions at which the score is not 0, [2, unit].
    """

    count: tuple[int, int]
    mean: Float[np.ndarray, "2 unit"]
    rate: Float[np.ndarray, "2 unit"]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class OnToken(Sums):
    """Scores at one token, or at any of several, against scores elsewhere. The result is a `TokenContrast`.

    Args:
      token: the id of the token, or an array of ids. It is data, so other tokens do not compile again.
    """

    token: int | Int[Array, "*ids"]

    def of(self, batch: ScoredBatch) -> dict[str, Pair]:
        here = batch.keep & jnp.isin(batch.tokens, jnp.asarray(self.token, batch.tokens.dtype))
        places = jnp.stack([here, batch.keep & ~here])
        chosen = [jnp.where(place[None], batch.scores, 0.0) for place in places]
        sums = {
            "count": jnp.sum(places, axis=(1, 2), dtype=jnp.int32),
            "total": jnp.stack([jnp.sum(scores, axis=(1, 2)) for scores in chosen]),
            "fired": jnp.stack([jnp.sum(scores != 0, axis=(1, 2), dtype=jnp.int32) for scores in chosen]),
        }
        return {name: as_pair(values) for name, values in sums.items()}

    def result(self, state: dict[str, tuple[np.ndarray, np.ndarray]]) -> TokenContrast:
        count, total, fired = (wide_sum(state[name]) for name in ("count", "total", "fired"))
        on, elsewhere = count.astype(np.int64).tolist()
        per = np.maximum(count, 1)[:, None]
        return TokenContrast((on, elsewhere), total / per, fired / per)
