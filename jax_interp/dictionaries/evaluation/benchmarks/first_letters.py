"""Words of a vocabulary in prompts about their first letter, and the activations at these words (SAEBench, C6a).

A prompt has a few solved examples, and then the word:

     apple has the first letter: A
     house has the first letter: H
     table

The activation is that at the last token, which is the word. The model is causal, so what would follow does not matter.
Each word is one token, so this works with any tokenizer.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.data.harvest import harvest
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.dictionaries.evaluation.benchmarks.pooled import Place

EXAMPLE = "{word} has the first letter: {letter}\n"
BATCH = 32


@dataclasses.dataclass(frozen=True)
class Words:
    """Words that are one token each."""

    ids: Int[np.ndarray, " word"]
    texts: tuple[str, ...]
    """The words as they stand in a text, with their leading space."""

    def __len__(self) -> int:
        return len(self.texts)

    def letters(self) -> tuple[str, ...]:
        """The upper-case first letters that occur, sorted."""
        return tuple(sorted({text.strip()[0].upper() for text in self.texts}))

    def labels(self) -> Bool[np.ndarray, "word letter"]:
        """Which of `letters` each word begins with."""
        return np.asarray([[text.strip()[0].upper() == letter for letter in self.letters()] for text in self.texts])


def vocabulary_words(tokenizer: Tokenizer, most: int = 2000, per_letter: int = 10, seed: int = 0) -> Words:
    """Tokens that are a space and at least two letters A to Z.

    Args:
      tokenizer: any tokenizer.
      most: the largest number of words; more are drawn at random.
      per_letter: letters with fewer words than this are left out.
      seed: of the draw.

    Raises:
      UserError: fewer than two letters are left, so there is nothing to tell apart.
    """
    ids = [i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids]
    words = [(i, text) for i, text in zip(ids, tokenizer.texts(ids), strict=True) if _is_word(text)]
    if len(words) > most:
        chosen = np.sort(np.random.default_rng(seed).choice(len(words), most, replace=False))
        words = [words[i] for i in chosen]
    first = [text.strip()[0].upper() for _, text in words]
    words = [word for word, letter in zip(words, first, strict=True) if first.count(letter) >= per_letter]
    found = Words(np.asarray([i for i, _ in words], np.int32), tuple(text for _, text in words))
    if len(found.letters()) < 2:
        raise UserError(
            f"the vocabulary has {len(found)} words of one token under letters with at least {per_letter} words: "
            "absorption of first letters needs two letters or more"
        )
    return found


def word_activations(place: Place, words: Words, examples: int = 10, seed: int = 0) -> Float[np.ndarray, "word d"]:
    """The activations at each word, at the end of a prompt of solved examples with other words.

    Args:
      place: the model, the value, and the tokenizer. `place.context` must be long enough for the prompts.
      words: the words.
      examples: the number of solved examples.
      seed: of the examples.

    Raises:
      UserError: a prompt is longer than the context, or an activation is not finite.
    """
    if not 0 <= examples < len(words):
        raise UserError(f"examples={examples} of {len(words)} words: from 0 to {len(words) - 1}")
    prompts = _prompts(place.tokenizer, words, examples, seed)
    longest = max(map(len, prompts))
    if longest > place.context:
        raise UserError(
            f"a prompt with {examples} examples has {longest} tokens, more than the context {place.context}"
        )
    rows = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        tokens = np.zeros((BATCH, longest), np.int32)
        last = np.zeros(BATCH, np.int32)
        for row, prompt in enumerate(batch):
            tokens[row, : len(prompt)], last[row] = prompt, len(prompt) - 1
        rows.append(np.asarray(_at(place.model, place.address, jnp.asarray(tokens), jnp.asarray(last)))[: len(batch)])
    found = np.concatenate(rows)
    if not np.isfinite(found).all():
        raise UserError("activations are not finite: look for NaN in the weights of the model")
    return found


def _prompts(tokenizer: Tokenizer, words: Words, examples: int, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    texts = []
    for number in range(len(words)):
        others = rng.choice(len(words) - 1, examples, replace=False)
        shown = [words.texts[i + (i >= number)] for i in others]
        texts.append("".join(EXAMPLE.format(word=word, letter=word.strip()[0].upper()) for word in shown))
    before = tokenizer.encode_batch(texts, bos=tokenizer.bos_id is not None)
    return [[*prefix, int(i)] for prefix, i in zip(before, words.ids, strict=True)]


def _is_word(text: str) -> bool:
    return text.startswith(" ") and len(text) > 2 and text[1:].isascii() and text[1:].isalpha()


@partial(jax.jit, static_argnames="address")
def _at(model: Any, address: Any, tokens: Array, last: Array) -> Array:
    x = harvest(model, address, tokens).astype(jnp.float32)
    return x.reshape(*tokens.shape, -1)[jnp.arange(len(tokens)), last]
