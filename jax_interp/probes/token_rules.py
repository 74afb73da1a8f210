"""Token rules: which tokens of an example a probe reads.

gather(model, data, "blocks.*.resid_post", rules=(Last(), Nth(-2), All(), Span("answer", skip_last=5)))

A rule of several tokens gives their mean, where a probe reads one vector for each example. Padding and BOS are never
read, and are not counted. A rule is a config: `core.config_json` writes it and reads it back.
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


def _from_the_end(mask: np.ndarray) -> np.ndarray:
    """The number of tokens of a mask from each position to the end, this one included."""
    return np.cumsum(mask[:, ::-1], axis=1)[:, ::-1]


def _without_ends(mask: np.ndarray, first: int, last: int) -> np.ndarray:
    """The tokens of a mask, without the first and the last ones of each row."""
    return mask & (np.cumsum(mask, axis=1) > first) & (_from_the_end(mask) > last)


def _slice_name(first: int, last: int) -> str:
    return f"[{first or ''}:{-last if last else ''}]" if first or last else ""


def _check_count(rule: TokenRule, least: int, **counts: int) -> None:
    for name, count in counts.items():
        if count < least:
            raise UserError(f"{type(rule).__name__}({name}={count}): give at least {least}")


@TOKEN_RULES.register
@dataclasses.dataclass(frozen=True)
class Last(TokenRule):
    """The last tokens of each example, as many as there are if it has fewer.

    Args:
      n: the number of tokens.
    """

    n: int = 1

    def __post_init__(self) -> None:
        _check_count(self, 1, n=self.n)

    def chosen(self, data: LabelledTokens) -> Bool[np.ndarray, "example pos"]:
        return data.readable & (_from_the_end(data.readable) <= self.n)

    def __str__(self) -> str:
        return "last" if self.n == 1 else f"last {self.n}"


@TOKEN_RULES.register
@dataclasses.dataclass(frozen=True)
class All(TokenRule):
    """All tokens of each example, without the first or the last ones if this is asked for.

    Args:
      skip_first: the number of tokens to leave out at the start.
      skip_last: the number of tokens to leave out at the end.
    """

    skip_first: int = 0
    skip_last: int = 0

    def __post_init__(self) -> None:
        _check_count(self, 0, skip_first=self.skip_first, skip_last=self.skip_last)

    def chosen(self, data: LabelledTokens) -> Bool[np.ndarray, "example pos"]:
        return _without_ends(data.readable, self.skip_first, self.skip_last)

    def __str__(self) -> str:
        return "all" + _slice_name(self.skip_first, self.skip_last)


@TOKEN_RULES.register
@dataclasses.dataclass(frozen=True)
class Nth(TokenRule):
    """One token by its number among the readable tokens: 0 is the first, -2 the last but one."""

    index: int

    def chosen(self, data: LabelledTokens) -> Bool[np.ndarray, "example pos"]:
        if self.index < 0:
            return data.readable & (_from_the_end(data.readable) == -self.index)
        return data.readable & (np.cumsum(data.readable, axis=1) == self.index + 1)

    def __str__(self) -> str:
        return f"token {self.index}"


def _span(name: str, data: LabelledTokens) -> np.ndarray:
    if name not in data.spans:
        raise UserError(f"{data.name} has no span {name!r}; it has {', '.join(map(repr, data.spans)) or 'none'}")
    return data.spans[name] & data.readable


@TOKEN_RULES.register
@dataclasses.dataclass(frozen=True)
class Span(TokenRule):
    """The tokens of a named part of the examples, such as "answer".

    Args:
      name: the name of the part.
      skip_first: the number of its tokens to leave out at the start.
      skip_last: the number of its tokens to leave out at the end. Goldowsky-Dill et al. 2025 (arXiv:2502.03407) leave
        out the last five of a response.
    """

    name: str
    skip_first: int = 0
    skip_last: int = 0

    def __post_init__(self) -> None:
        _check_count(self, 0, skip_first=self.skip_first, skip_last=self.skip_last)

    def chosen(self, data: LabelledTokens) -> Bool[np.ndarray, "example pos"]:
        return _without_ends(_span(self.name, data), self.skip_first, self.skip_last)

    def __str__(self) -> str:
        return self.name + _slice_name(self.skip_first, self.skip_last)


@TOKEN_RULES.register
@dataclasses.dataclass(frozen=True)
class LastOfSpan(TokenRule):
    """The last token of a named part of the examples."""

    name: str

    def chosen(self, data: LabelledTokens) -> Bool[np.ndarray, "example pos"]:
        span = _span(self.name, data)
        return span & (_from_the_end(span) == 1)

    def __str__(self) -> str:
        return f"last of {self.name}"


@TOKEN_RULES.register
@dataclasses.dataclass(frozen=True)
class BeforeSpan(TokenRule):
    """The tokens just before a named part of the examples: what the model knows before it writes the part.

    Args:
      name: the name of the part.
      n: the number of tokens.
    """

    name: str
    n: int = 1

    def __post_init__(self) -> None:
        _check_count(self, 1, n=self.n)

    def chosen(self, data: LabelledTokens) -> Bool[np.ndarray, "example pos"]:
        span = _span(self.name, data)
        before = data.readable & (np.cumsum(span, axis=1) == 0) & span.any(axis=1, keepdims=True)
        return before & (_from_the_end(before) <= self.n)

    def __str__(self) -> str:
        return f"{self.n} before {self.name}" if self.n > 1 else f"before {self.name}"


@TOKEN_RULES.register
@dataclasses.dataclass(frozen=True)
class AfterSpan(TokenRule):
    """The tokens just after a named part of the examples.

    Args:
      name: the name of the part.
      n: the number of tokens.
    """

    name: str
    n: int = 1

    def __post_init__(self) -> None:
        _check_count(self, 1, n=self.n)

    def chosen(self, data: LabelledTokens) -> Bool[np.ndarray, "example pos"]:
        span = _span(self.name, data)
        after = data.readable & (_from_the_end(span) == 0) & span.any(axis=1, keepdims=True)
        return after & (np.cumsum(after, axis=1) <= self.n)

    def __str__(self) -> str:
        return f"{self.n} after {self.name}" if self.n > 1 else f"after {self.name}"


LAST = Last()
ALL = All()
