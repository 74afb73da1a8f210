"""The nodes of an attribution graph: features, errors, tokens and logits of one prompt."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, order=True)
class Feature:
    """An active feature: `layer` is the index of its source in the dictionary."""

    layer: int
    pos: int
    feature: int


@dataclasses.dataclass(frozen=True, order=True)
class Error:
    """What the dictionary does not explain of the value that is written at one layer and position."""

    layer: int
    pos: int


@dataclasses.dataclass(frozen=True, order=True)
class Token:
    """The embedding of the token at one position."""

    pos: int


@dataclasses.dataclass(frozen=True, order=True)
class Logit:
    """The logit of a token at the last position, minus the mean over the vocabulary."""

    token: int


Node = Feature | Error | Token | Logit
Source = Feature | Error | Token
Target = Feature | Logit
