"""What sampling settings do to words: the distribution over words that a cut-down sampler has, beside the model's own.

Temperature, top-k and top-p act on each token. A word of k tokens is sharpened k times, a word whose first token is
shared gains the mass of all that share it, and a rare first token is cut with everything behind it. So the words drawn
are not those of the word distribution at that temperature (B. Long, "Shorter tokens are more likely", 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.models.generation.generate import generate
from jax_interp.models.generation.sampling import Sample

Word = Sequence[int]


@dataclass(frozen=True)
class WordBias:
    """Probabilities of the same words, in the order they were given; each sums to at most 1, the rest being other text.

    `drawn` is over `plain` what the sampler favours; `tempered` is what the temperature would do to whole words.
    """

    n_tokens: np.ndarray
    plain: Float[np.ndarray, "word"]
    """Under the model as it is."""
    drawn: Float[np.ndarray, "word"]
    """Under the sampler, exactly."""
    tempered: Float[np.ndarray, "word"] | None
    """`plain ** (1 / temperature)`, scaled to the sum of `plain`; None at temperature 0."""

    @property
    def kl(self) -> float:
        """KL(drawn ‖ plain) in nats over the words and, as one more, everything else."""
        q, p = (np.append(x, max(0.0, 1.0 - x.sum())) for x in (self.drawn, self.plain))
        kept = q > 0
        return float(np.sum(q[kept] * (np.log(q[kept]) - np.log(np.maximum(p[kept], 1e-300)))))

    def mean(self, values: Sequence[float], under: str = "drawn") -> float:
        """The mean of one value per word, its length say, over the words as `under` weighs them (`"plain"`, `"drawn"`,
        `"tempered"`): `bias.mean(bias.n_tokens)` against `bias.mean(bias.n_tokens, "plain")`."""
        p = getattr(self, under)
        return float(np.sum(p * np.asarray(values, np.float64)) / np.sum(p))


def word_bias(model: Callable, prompt: Word, words: Sequence[Word], choose: Sample) -> WordBias:
    """What `choose` does to the probabilities of `words`, token sequences, after `prompt`: exact, by one forward pass
    over all their prefixes.

    No word may begin with another, or the two would not exclude each other; end them by a space's or a stop's token
    where they would. `model` is any callable of tokens.
    """
    plain = np.exp(word_log_probs(model, prompt, words, Sample()))
    drawn = np.exp(word_log_probs(model, prompt, words, choose))
    temperature, tempered = float(choose.temperature), None
    if temperature > 0:
        scaled = np.exp((np.log(np.maximum(plain, 1e-300)) - np.log(plain.max())) / temperature)
        tempered = scaled / scaled.sum() * plain.sum()
    return WordBias(np.asarray([len(word) for word in words]), plain, drawn, tempered)


def word_log_probs(model: Callable, prompt: Word, words: Sequence[Word], choose: Any) -> Float[np.ndarray, "word"]:
    """The log-probability of each word after `prompt` when every token is drawn by `choose` (`Sample`, `Greedy`)."""
    _check(prompt, words)
    longest, n = max(map(len, words)), len(prompt)
    rows = np.zeros((len(words), n + longest - 1), np.int32)  # a causal model does not see what stands after a word
    targets, real = np.zeros((len(words), longest), np.int32), np.zeros((len(words), longest), bool)
    for i, word in enumerate(words):
        rows[i, : n + len(word) - 1] = [*prompt, *word[:-1]]
        targets[i, : len(word)], real[i, : len(word)] = word, True
    each = np.asarray(_log_probs(model, jnp.asarray(rows), choose, jnp.asarray(targets)), np.float64)
    return np.where(real, each, 0.0).sum(axis=1)


def drawn_shares(
    model: Callable, prompt: Word, words: Sequence[Word], choose: Callable, key: Array, n: int
) -> Float[np.ndarray, "word"]:
    """The share of each word among `n` texts that `generate` writes after `prompt`: what `word_bias` computes,
    measured. Its standard error is sqrt(p (1 - p) / n)."""
    _check(prompt, words)
    tokens = jnp.broadcast_to(jnp.asarray(prompt, jnp.int32), (n, len(prompt)))
    new = np.asarray(generate(model, tokens, max(map(len, words)), choose=choose, key=key))
    return np.asarray([np.mean((new[:, : len(word)] == np.asarray(word)[None]).all(axis=1)) for word in words])


@jax.jit
def _log_probs(model, rows, choose, targets):
    logits = model(rows)[:, -targets.shape[1] :].astype(jnp.float32)
    return jnp.take_along_axis(choose.log_probs(logits), targets[:, :, None], axis=-1)[:, :, 0]


def _check(prompt: Word, words: Sequence[Word]) -> None:
    if not len(prompt) or not words or not all(len(word) for word in words):
        raise UserError("the prompt and every word need at least one token")
    for one, other in pairwise(sorted(tuple(word) for word in words)):
        if other[: len(one)] == one:
            raise UserError(f"the word {list(other)} begins with the word {list(one)}: they would be counted twice")
