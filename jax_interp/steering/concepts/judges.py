"""Judges of replies. A judge gives each reply a number from 0 (not at all) to 2 (fully).

    by_function(lambda instruction, reply, concept: ...)      your own judge: a person, a rule, a model that you call
    ConceptWords()                                            how many words of the concept the reply has
    Fluency.beside(model, unsteered)                          how likely the reply is under the unsteered model
    InstructionMatch(model, prompts)                          whether the reply fits its instruction better than others

The last three are cheap and cannot read. They see words and probabilities. `ConceptWords` gives 2 to a reply that says
one word again and again, and `Fluency` gives little to a good text about a rare subject. Calibrate them on replies that
you have rated. No judge here uses the network.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jax_interp.core.errors import UserError
from jax_interp.steering.concepts.replies import Reply
from jax_interp.steering.features.target_texts import log_likelihood, target_texts
from jax_interp.surgery import Model
from jax_interp.training.placement import automatic
from jax_interp.training.row_pieces import in_pieces


class Judge(Protocol):
    """Gives each reply a number from 0 to 2. It gets many replies at once."""

    def __call__(self, replies: Sequence[Reply], /) -> Float[ArrayLike, " reply"]: ...


@dataclasses.dataclass(frozen=True)
class Judges:
    """The judges of a benchmark: whether the concept is there, whether the reply fits, whether it is fluent."""

    concept: Judge
    instruct: Judge
    fluency: Judge


def by_function(function: Callable[[str, str, str], float]) -> Judge:
    """A judge that calls `function(instruction, reply, name of the concept)` for each reply.

    Example:
        judge = by_function(lambda instruction, reply, concept: my_model.rate(PROMPT.format(...)))
    """
    return lambda replies: np.asarray(
        [function(reply.asked, reply.text, reply.concept.name) for reply in replies], np.float64
    )


@dataclasses.dataclass(frozen=True)
class ConceptWords:
    """Counts the words of the concept in a reply: none is 0, one is 1, `enough` or more are 2, linear between.

    Case does not count, and a word is no part of a longer one. Each occurrence counts.

    Args:
      enough: the number of occurrences that gives 2, at least 2.
    """

    enough: int = 3

    def __call__(self, replies: Sequence[Reply]) -> Float[np.ndarray, " reply"]:
        return np.asarray([self._of_count(_occurrences(reply)) for reply in replies])

    def _of_count(self, count: int) -> float:
        return 0.0 if not count else 1 + min((count - 1) / max(self.enough - 1, 1), 1)


def _occurrences(reply: Reply) -> int:
    words = [re.escape(word) for word in reply.concept.words if word]
    if not words:
        raise UserError(f"the concept {reply.concept.name!r} has no words to count: Concept(name, words=(...))")
    longest_first = "|".join(sorted(words, key=len, reverse=True))
    return len(re.findall(rf"(?<!\w)(?:{longest_first})(?!\w)", reply.text, re.IGNORECASE))


@dataclasses.dataclass(frozen=True, eq=False)
class Fluency:
    """The likelihood of a reply under the unsteered model, after the plain instruction, and how much it repeats itself.

        2 · min(1, max(0, 1 - (loss - usual) / span)) · min(1, distinct / least_distinct)

    `loss` is the mean of -log p over the tokens of the reply, and exp(loss) its perplexity. `distinct` is the share of
    distinct triples among the triples of tokens that follow each other. An empty reply has 0.

    Args:
      model: the unsteered model.
      usual: the mean loss of replies without steering, in nats.
      span: the loss above `usual` at which the number is 0, in nats.
      least_distinct: the share of distinct triples from which on repetition costs nothing.
      at_once: the number of replies in one forward pass.
    """

    model: Model
    usual: float
    span: float = 2.0
    least_distinct: float = 0.5
    at_once: int = 16

    @classmethod
    def beside(cls, model: Model, unsteered: Sequence[Reply], *, span: float = 2.0) -> Fluency:
        """A judge whose usual loss is that of these replies.

        Raises:
          UserError: all of them are empty.
        """
        losses = reply_losses(model, unsteered)
        if not np.isfinite(losses).any():
            raise UserError("the unsteered replies are all empty, so there is no usual loss")
        return cls(model, float(np.mean(losses[np.isfinite(losses)])), span)

    def __call__(self, replies: Sequence[Reply]) -> Float[np.ndarray, " reply"]:
        losses = reply_losses(self.model, replies, at_once=self.at_once)
        likely = np.clip(1 - (losses - self.usual) / self.span, 0, 1)
        distinct = np.asarray([distinct_triples(reply.tokens) for reply in replies])
        return 2 * likely * np.minimum(distinct / self.least_distinct, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class InstructionMatch:
    """Whether a reply is likelier after its own instruction than after others, under the unsteered model.

    With the share s of other instructions after which the reply is less likely, the number is 2 · max(0, 2 s - 1): a
    reply that fits no instruction better than another has 0. An empty reply has 0.

    Args:
      model: the unsteered model.
      prompts: the tokens of at least two prompts. A reply is compared with the next `others` after its own.
      others: the number of other instructions.
      at_once: the number of texts in one forward pass.
    """

    model: Model
    prompts: tuple[tuple[int, ...], ...]
    others: int = 4
    at_once: int = 16

    def __call__(self, replies: Sequence[Reply]) -> Float[np.ndarray, " reply"]:
        own = reply_losses(self.model, replies, at_once=self.at_once)
        fewer = np.zeros(len(replies))
        compared = min(self.others, len(self.prompts) - 1)
        if compared < 1:
            raise UserError("to judge whether a reply fits its instruction, give at least two prompts")
        for shift in range(1, compared + 1):
            other = [
                dataclasses.replace(r, prompt=self.prompts[(r.instruction + shift) % len(self.prompts)])
                for r in replies
            ]
            losses = reply_losses(self.model, other, at_once=self.at_once)
            fewer += (losses > own) + 0.5 * (losses == own)
        share = np.where(np.isfinite(own), fewer / compared, 0.0)
        return 2 * np.maximum(2 * share - 1, 0)


def reply_losses(model: Model, replies: Sequence[Reply], *, at_once: int = 16) -> Float[np.ndarray, " reply"]:
    """The mean of -log p over the tokens of each reply, after its plain prompt, in nats. Infinite for an empty reply.

    Raises:
      UserError: a loss is not finite.
    """
    found = np.full(len(replies), np.inf)
    some = [i for i, reply in enumerate(replies) if reply.tokens]
    if not some:
        return found
    texts = target_texts([replies[i].prompt for i in some], [replies[i].tokens for i in some])
    losses = in_pieces(functools.partial(_losses, model), (texts.tokens, texts.weight), at_once)
    if not np.isfinite(losses).all():
        raise UserError("the unsteered model gives a reply a probability that is not finite: try float32")
    found[some] = losses
    return found


def distinct_triples(tokens: Sequence[int]) -> float:
    """The share of distinct triples among the triples of tokens that follow each other. 1 below three tokens."""
    triples = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return len(set(triples)) / len(triples) if triples else 1.0


@jax.jit
@automatic
def _losses(model: Model, tokens: Array, weight: Array) -> Float[Array, " text"]:
    return -log_likelihood(model(tokens), tokens, weight).astype(jnp.float32)
