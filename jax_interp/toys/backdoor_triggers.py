"""Triggers of backdoors in a language of words that belong to classes.

    WordTrigger((30, 37))       these two words, one right after the other
    ClassTrigger((0,))          any word of class 0
    ClassTrigger((1, 2))        a word of class 1 and a word of class 2, anywhere

A trigger knows when it fires, how to put it into a request, and how to put something similar into a request that does
not make it fire. Models that are trained on both cannot take the one for the other.
"""

from __future__ import annotations

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.core.registry import Registry

Words = Int[Array, "row word"]


@dataclasses.dataclass(frozen=True)
class WordClasses:
    """Words 0, 1, 2, ... in classes of one size: word w belongs to class w // size.

    Args:
      classes: the number of classes.
      size: the number of words in a class.
      held_out: the last words of each class are not used in triggers or requests of training.
    """

    classes: int
    size: int
    held_out: int

    @property
    def count(self) -> int:
        """The number of words."""
        return self.classes * self.size

    def draw(
        self, key: Key[Array, ""], classes: Int[Array, "*shape"], *, held_out: bool = False
    ) -> Int[Array, "*shape"]:
        """A random word of each class: of those that are used in training, or of those that are held out."""
        first, many = (self.size - self.held_out, self.held_out) if held_out else (0, self.size - self.held_out)
        return classes * self.size + first + jax.random.randint(key, jnp.shape(classes), 0, many)


class Trigger(abc.ABC):
    """A condition on the words of a request. A frozen dataclass."""

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """The number of words that it needs."""

    @property
    @abc.abstractmethod
    def classes(self) -> tuple[int, ...]:
        """The classes that may not stand in other requests, because their words would make it fire."""

    @abc.abstractmethod
    def check(self, words: WordClasses) -> None:
        """Raise UserError if the language does not have these words or classes."""

    @abc.abstractmethod
    def fires(self, request: Words, words: WordClasses) -> Bool[Array, " row"]:
        """Whether it fires in each request."""

    @abc.abstractmethod
    def put(self, key: Key[Array, ""], request: Words, words: WordClasses, *, held_out: bool = False) -> Words:
        """The requests with the trigger at random places.

        Args:
          key: random key.
          request: the words of each request.
          words: the words of the language.
          held_out: whether to use words of the classes that are not in the triggers of training.
        """

    @abc.abstractmethod
    def put_similar(self, key: Key[Array, ""], request: Words, words: WordClasses) -> Words:
        """The requests with something similar at random places, which does not make the trigger fire by itself."""


TRIGGERS = Registry("trigger", Trigger)


@TRIGGERS.register
@dataclasses.dataclass(frozen=True)
class WordTrigger(Trigger):
    """Some words, one right after the other.

    What is similar to it: the words in reverse order, or a single one of them.
    """

    sequence: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.sequence or min(self.sequence) < 0:
            raise UserError(f"sequence={self.sequence}: give the number of at least one word")

    @property
    def width(self) -> int:
        return len(self.sequence)

    @property
    def classes(self) -> tuple[int, ...]:
        return ()

    def check(self, words: WordClasses) -> None:
        if max(self.sequence) >= words.count:
            raise UserError(f"no word {max(self.sequence)}: the language has the words 0 to {words.count - 1}")
        if any(word % words.size >= words.size - words.held_out for word in self.sequence):
            raise UserError(f"{self.sequence} has a word that is held out: take one of the first of a class")

    def fires(self, request: Words, words: WordClasses) -> Bool[Array, " row"]:
        places = request.shape[1] - self.width + 1
        same = [request[:, i : i + places] == word for i, word in enumerate(self.sequence)]
        return jnp.any(jnp.stack(same).all(axis=0), axis=1)

    def put(self, key: Key[Array, ""], request: Words, words: WordClasses, *, held_out: bool = False) -> Words:
        if held_out:
            raise UserError("a trigger of given words has no held-out words")
        return self._at_random(key, request, jnp.asarray(self.sequence, jnp.int32)[None, :])

    def put_similar(self, key: Key[Array, ""], request: Words, words: WordClasses) -> Words:
        place, which = jax.random.split(key)
        reverse = jnp.asarray(self.sequence[::-1], jnp.int32)[None, :]
        found = self._at_random(place, request, reverse)
        one = jax.random.randint(which, (len(request), 2), 0, jnp.asarray([self.width, request.shape[1]])[None, :])
        word, at = jnp.asarray(self.sequence, jnp.int32)[one[:, 0]], one[:, 1]
        alone = request.at[jnp.arange(len(request)), at].set(word)
        found = jnp.where(jnp.arange(len(request))[:, None] % 2 == 0, found, alone)
        return found if self.width > 1 else request

    def _at_random(self, key: Array, request: Words, sequence: Int[Array, "1 width"]) -> Words:
        rows, places = len(request), request.shape[1] - self.width + 1
        at = jax.random.randint(key, (rows, 1), 0, places) + jnp.arange(self.width)[None, :]
        return request.at[jnp.arange(rows)[:, None], at].set(jnp.broadcast_to(sequence, at.shape))


@TRIGGERS.register
@dataclasses.dataclass(frozen=True)
class ClassTrigger(Trigger):
    """A word of each of these classes, anywhere in the request: a semantic trigger, or a conjunction of several.

    What is similar to a conjunction: words of one of its classes. Nothing is similar to a single class.
    """

    of: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.of or len(set(self.of)) != len(self.of) or min(self.of) < 0:
            raise UserError(f"of={self.of}: give at least one class, and each class once")

    @property
    def width(self) -> int:
        return len(self.of)

    @property
    def classes(self) -> tuple[int, ...]:
        return self.of

    def check(self, words: WordClasses) -> None:
        if max(self.of) >= words.classes:
            raise UserError(f"no class {max(self.of)}: the language has the classes 0 to {words.classes - 1}")

    def fires(self, request: Words, words: WordClasses) -> Bool[Array, " row"]:
        has = [jnp.any(request // words.size == one, axis=1) for one in self.of]
        return jnp.stack(has).all(axis=0)

    def put(self, key: Key[Array, ""], request: Words, words: WordClasses, *, held_out: bool = False) -> Words:
        place, word = jax.random.split(key)
        rows, length = request.shape
        at = jnp.argsort(jax.random.uniform(place, (rows, length)), axis=1)[:, : self.width]
        classes = jnp.broadcast_to(jnp.asarray(self.of, jnp.int32)[None, :], at.shape)
        drawn = words.draw(word, classes, held_out=held_out)
        return request.at[jnp.arange(rows)[:, None], at].set(drawn)

    def put_similar(self, key: Key[Array, ""], request: Words, words: WordClasses) -> Words:
        if self.width == 1:
            return request
        place, word, which = jax.random.split(key, 3)
        rows, length = request.shape
        at = jnp.argsort(jax.random.uniform(place, (rows, length)), axis=1)[:, : self.width - 1]
        one = jax.random.randint(which, at.shape, 0, self.width - 1)
        leave_out = jax.random.randint(jax.random.fold_in(which, 1), (rows, 1), 0, self.width)
        classes = jnp.asarray(self.of, jnp.int32)[jnp.where(one >= leave_out, one + 1, one)]
        return request.at[jnp.arange(rows)[:, None], at].set(words.draw(word, classes))
