"""Texts with two attributes of two values each, and a model that represents their words in superposition.

A text has words of its value of the intended attribute, words of its value of the spurious attribute, and fillers.
Words of the spurious attribute are more frequent and never misleading. So they are easier to learn from where labels
cannot tell the attributes apart.

    model = word_model(jax.random.key(0))
    tokens, intended, spurious = random_texts(jax.random.key(1), 100)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Positions, Site
from jax_interp.toys.toy import TOYS, Toy


@dataclasses.dataclass(frozen=True)
class TwoAttributesConfig:
    """The texts and the model.

    Token 0 begins each text. Then come the words of the intended attribute (value 0, value 1), those of the spurious
    attribute, and the fillers.

    Args:
      words: the words of each value of each attribute.
      fillers: the other words.
      length: the tokens of a text, the first one included.
      intended: the share of tokens that are words of the intended attribute.
      misleading: the share of these that belong to the other value.
      spurious: the share of tokens that are words of the spurious attribute.
      d: the width of the model. If there are more words than that, their directions are not orthogonal.
    """

    words: int = 4
    fillers: int = 16
    length: int = 24
    intended: float = 0.15
    misleading: float = 0.15
    spurious: float = 0.3
    d: int = 24

    def __post_init__(self) -> None:
        if not 0 < self.intended < 1 or not 0 < self.spurious < 1 or self.intended + self.spurious > 1:
            raise UserError(f"intended={self.intended}, spurious={self.spurious}: shares of tokens, at most 1 together")
        if not 0 <= self.misleading < 0.5:
            raise UserError(f"misleading={self.misleading}: a share below 0.5")
        if min(self.words, self.fillers, self.d) < 1 or self.length < 2:
            raise UserError("words, fillers and d must be at least 1, length at least 2")

    @property
    def vocab(self) -> int:
        return 1 + 4 * self.words + self.fillers

    def is_word(self, attribute: str) -> Bool[np.ndarray, " vocab"]:
        """For each token, whether it is a word of "intended" or of "spurious"."""
        start = {"intended": 1, "spurious": 1 + 2 * self.words}[attribute]
        token = np.arange(self.vocab)
        return (token >= start) & (token < start + 2 * self.words)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class WordModel:
    """`model(tokens)` returns logits [text, pos, vocab]. Its value is `x`, the directions of the tokens.

    Args:
      directions: the direction of each word. The logit of a word is 10 times the product with its direction.
    """

    directions: Float[Array, "vocab d"]

    def __call__(
        self, tokens: Int[Array, "text pos"], *, mask: Bool[Array, "text pos"] | None = None, taps: tuple = ()
    ) -> Any:
        site = Site.open(taps, positions=Positions(real=mask))
        x = site("x", self.directions[tokens])
        logits = 10 * jnp.einsum("tpd,vd->tpv", x, self.directions)
        return site.close(site("logits", logits, "batch pos vocab"))


def word_model(key: Key[Array, ""], config: TwoAttributesConfig = TwoAttributesConfig()) -> WordModel:
    """A model with a random direction of length 1 for each word. Directions are orthogonal if the width allows it."""
    directions = jax.random.normal(key, (max(config.vocab, config.d), config.d))
    if config.d >= config.vocab:
        return WordModel(jnp.linalg.qr(directions)[0][: config.vocab])
    return WordModel(directions / jnp.linalg.norm(directions, axis=1, keepdims=True))


def attribute_texts(
    key: Key[Array, ""],
    intended: Int[Array, " text"],
    spurious: Int[Array, " text"],
    config: TwoAttributesConfig = TwoAttributesConfig(),
) -> Int[Array, "text pos"]:
    """Texts with these values of their attributes.

    Args:
      key: random key.
      intended: the value of the intended attribute of each text, 0 or 1.
      spurious: the value of the spurious attribute of each text.
      config: the texts.
    """
    kind, word, slip = jax.random.split(key, 3)
    shape = (len(intended), config.length - 1)
    u = jax.random.uniform(kind, shape)
    misleads = jax.random.uniform(slip, shape) < config.misleading
    word = jax.random.randint(word, shape, 0, np.iinfo(np.int32).max)
    n = config.words
    value = jnp.where(misleads, 1 - intended[:, None], intended[:, None])
    of_intended = 1 + n * value + word % n
    of_spurious = 1 + n * (2 + spurious[:, None]) + word % n
    filler = 1 + 4 * n + word % config.fillers
    is_intended, is_spurious = u < config.intended, u > 1 - config.spurious
    tokens = jnp.where(is_intended, of_intended, jnp.where(is_spurious, of_spurious, filler))
    return jnp.pad(tokens.astype(jnp.int32), ((0, 0), (1, 0)))


def random_texts(
    key: Key[Array, ""], n: int, config: TwoAttributesConfig = TwoAttributesConfig()
) -> tuple[Int[Array, "text pos"], Int[Array, " text"], Int[Array, " text"]]:
    """(tokens, value of the intended attribute, value of the spurious attribute) of n texts; the values are random."""
    one, other, text = jax.random.split(key, 3)
    values = [jax.random.randint(k, (n,), 0, 2) for k in (one, other)]
    return attribute_texts(text, values[0], values[1], config), values[0], values[1]


@TOYS.register
class TwoAttributesToy(Toy[WordModel]):
    """A model without layers, on texts with two attributes."""

    name = "two-attributes"

    def example(self, key: Key[Array, ""]) -> WordModel:
        return word_model(key)

    def sample(self, model: WordModel, key: Key[Array, ""], batch: int) -> Int[Array, "text pos"]:
        return random_texts(key, batch)[0]
