"""How sampling settings change the distribution over words.

Temperature, top-k and top-p act on single tokens. A word of k tokens is therefore sharpened k times. A word becomes
more likely if many words share its first token. If a rare first token is filtered out, all words that begin with it
become impossible. The sampled words therefore do not follow the model's distribution over words at this temperature
(B. Long, "Shorter tokens are more likely", 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.objectives import of_class
from jax_interp.models.generation.generate import generate
from jax_interp.models.generation.sampling import Chooser, Sample
from jax_interp.surgery.contract import Model

Word = Sequence[int]
"""The token ids of a word."""


class TokenDistribution(Protocol):
    """A chooser whose distribution is known: `Greedy`, `Sample`."""

    def log_probs(self, logits: Float[Array, "... vocab"], /) -> Float[Array, "... vocab"]:
        """The log-probability of choosing each token."""
        ...


@dataclass(frozen=True)
class WordBias:
    """The probabilities of words, in the order of the given words. The remaining probability belongs to other text.

    `drawn / plain` is the effect of the sampler on each word. `tempered` is the effect of the same temperature on the
    distribution over whole words.
    """

    n_tokens: Int[np.ndarray, "word"]
    """The number of tokens of each word."""
    plain: Float[np.ndarray, "word"]
    """The probability under the model."""
    drawn: Float[np.ndarray, "word"]
    """The exact probability under the sampler."""
    tempered: Float[np.ndarray, "word"] | None
    """`plain ** (1 / temperature)`, scaled to the sum of `plain`. None for temperature 0."""

    @property
    def kl(self) -> float:
        """KL(drawn ‖ plain) in nats. All other text is treated as one more word."""
        q, p = (np.append(x, max(0.0, 1.0 - x.sum())) for x in (self.drawn, self.plain))
        kept = q > 0
        return float(np.sum(q[kept] * (np.log(q[kept]) - np.log(np.maximum(p[kept], 1e-300)))))

    def mean(self, values: Sequence[float], under: Literal["plain", "drawn", "tempered"] = "drawn") -> float:
        """The mean over the words of one value per word, weighted by the probabilities `under`.

        Example:
            bias.mean(bias.n_tokens), bias.mean(bias.n_tokens, "plain")  # the mean length, sampled and under the model
        """
        p = getattr(self, under)
        return float(np.sum(p * np.asarray(values, np.float64)) / np.sum(p))


def word_bias(model: Callable[..., Array], prompt: Word, words: Sequence[Word], choose: Sample) -> WordBias:
    """The effect of a sampler on the probabilities of words after a prompt. It is exact, from one forward pass.

    Args:
      model: any callable from tokens `[batch, pos]` to logits `[batch, pos, vocab]`.
      prompt: the token ids of the prompt.
      words: the token ids of each word. No word may be the beginning of another word, because the words must exclude
        each other. If necessary, add a space or a stop token to the end of the words.
      choose: the sampler.

    Raises:
      UserError: the prompt or a word has no tokens, or a word is the beginning of another word.

    Example:
        words = [tokenizer.encode(word, bos=False) for word in ("_name", "value", "get(")]
        bias = word_bias(model, tokenizer.encode("return self.", bos=True), words, Sample(temperature=0.5))
    """
    plain = np.exp(word_log_probs(model, prompt, words, Sample()))
    drawn = np.exp(word_log_probs(model, prompt, words, choose))
    temperature, tempered = float(choose.temperature), None
    if temperature > 0:
        scaled = np.exp((np.log(np.maximum(plain, 1e-300)) - np.log(plain.max())) / temperature)
        tempered = scaled / scaled.sum() * plain.sum()
    return WordBias(np.asarray([len(word) for word in words]), plain, drawn, tempered)


def word_log_probs(
    model: Callable[..., Array], prompt: Word, words: Sequence[Word], choose: TokenDistribution
) -> Float[np.ndarray, "word"]:
    """The log-probability of each word after `prompt`, if `choose` (`Sample`, `Greedy`) chooses every token."""
    _check(prompt, words)
    longest, n = max(map(len, words)), len(prompt)
    rows = np.zeros((len(words), n + longest - 1), np.int32)  # a causal model does not see the padding after a word
    targets, real = np.zeros((len(words), longest), np.int32), np.zeros((len(words), longest), bool)
    for i, word in enumerate(words):
        rows[i, : n + len(word) - 1] = [*prompt, *word[:-1]]
        targets[i, : len(word)], real[i, : len(word)] = word, True
    each = np.asarray(_log_probs(model, jnp.asarray(rows), choose, jnp.asarray(targets)), np.float64)
    return np.where(real, each, 0.0).sum(axis=1)


def drawn_shares(
    model: Model, prompt: Word, words: Sequence[Word], choose: Chooser, key: Array, n: int
) -> Float[np.ndarray, "word"]:
    """The share of each word among `n` texts that `generate` samples after `prompt`.

    This is an estimate of `word_bias(...).drawn`. The standard error of a share p is sqrt(p (1 - p) / n).
    """
    _check(prompt, words)
    tokens = jnp.broadcast_to(jnp.asarray(prompt, jnp.int32), (n, len(prompt)))
    new = np.asarray(generate(model, tokens, max(map(len, words)), choose=choose, key=key))
    return np.asarray([np.mean((new[:, : len(word)] == np.asarray(word)[None]).all(axis=1)) for word in words])


@jax.jit
def _log_probs(model, rows, choose, targets):
    logits = upcast(model(rows)[:, -targets.shape[1] :])
    return of_class(choose.log_probs(logits), targets)


def _check(prompt: Word, words: Sequence[Word]) -> None:
    if not len(prompt) or not words or not all(len(word) for word in words):
        raise UserError("the prompt and every word need at least one token")
    for word, following in pairwise(sorted(tuple(word) for word in words)):
        if following[: len(word)] == word:
            raise UserError(f"the word {list(following)} begins with the word {list(word)}: it would be counted twice")
