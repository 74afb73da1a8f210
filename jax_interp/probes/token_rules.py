"""Token rules: which tokens of an example a probe reads.

gather(model, data, "blocks.*.resid_post", rules=(Last(), Nth(-2), All()))

A rule of several tokens gives their mean, where a probe reads one vector for each example. Padding and BOS are never
read.
"""

from __future__ import annotations

import abc
import dataclasses

import numpy as np
from jaxtyping import Bool

from jax_interp.core.errors import UserError
from jax_interp.core.registry import Registry
from jax_interp.probes.labelled_tokens import LabelledTokens


class TokenRule(abc.ABC):
    """Which tokens a probe reads."""

    @abc.abstractmethod
    def chosen(self, data: LabelledTokens) -> Bool[np.ndarray, "example pos"]:
        """Whether the rule names a token. `tokens_of` leaves out those that are not readable."""

    def __str__(self) -> str:
        """The name of the rule in tables."""
        return type(self).__name__.lower()


TOKEN_RULES = Registry("token rule", TokenRule)


def tokens_of(rule: TokenRule, data: LabelledTokens) -> Bool[np.ndarray, "example pos"]:
    """The tokens that a probe reads.

    Raises:
      UserError: the rule names no readable token of an example.
    """
    read = rule.chosen(data) & data.readable
    if not (some := read.any(axis=1)).all():
        row = int(np.argmin(some))
        text = f", {data.texts[row][:40]!r}," if data.texts else ""
        raise UserError(f"{data.name}: the rule {rule} names no token of example {row}{text} that can be read")
    return read


def _from_the_end(data: LabelledTokens) -> np.ndarray:
    """The number of readable tokens from each position to the end, this one included."""
    return np.cumsum(data.readable[:, ::-1], axis=1)[:, ::-1]


@TOKEN_RULES.register
@dataclasses.dataclass(frozen=True)
class Last(TokenRule):
    """The last token of each example."""

    def chosen(self, data: LabelledTokens) -> Bool[np.ndarray, "example pos"]:
        return data.readable & (_from_the_end(data) == 1)


@TOKEN_RULES.register
@dataclasses.dataclass(frozen=True)
class All(TokenRule):
    """All tokens of each example."""

    def chosen(self, data: LabelledTokens) -> Bool[np.ndarray, "example pos"]:
        return data.readable


@TOKEN_RULES.register
@dataclasses.dataclass(frozen=True)
class Nth(TokenRule):
    """One token by its number among the readable tokens: 0 is the first, -2 the last but one."""

    index: int

    def chosen(self, data: LabelledTokens) -> Bool[np.ndarray, "example pos"]:
        if self.index < 0:
            return data.readable & (_from_the_end(data) == -self.index)
        return data.readable & (np.cumsum(data.readable, axis=1) == self.index + 1)

    def __str__(self) -> str:
        return f"token {self.index}"


@TOKEN_RULES.register
@dataclasses.dataclass(frozen=True)
class Span(TokenRule):
    """The tokens of a named part of the examples, such as "answer"."""

    name: str

    def chosen(self, data: LabelledTokens) -> Bool[np.ndarray, "example pos"]:
        if self.name not in data.spans:
            raise UserError(f"{data.name} has no span {self.name!r}; it has {', '.join(data.spans) or 'none'}")
        return data.spans[self.name]

    def __str__(self) -> str:
        return self.name


LAST = Last()
ALL = All()
