"""The examples of a defence: requests with responses, some of them harmful.

They are `LabelledTokens` with two classes, of which the second one is harmful, and two spans: `request`, and
`response`. The response begins with the token that predicts its first word (the end of the turn's header), so that each
of its tokens but the last predicts the next one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.labelled_tokens import LabelledTokens

REQUEST, RESPONSE = "request", "response"
"""The names of the two spans."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Texts:
    """A batch of examples.

    Args:
      tokens: the tokens, padded on the right.
      mask: True at real tokens.
      request: True at the tokens of the request.
      response: True at the tokens of the response.
      harmful: whether the example is harmful.
    """

    tokens: Int[Array, "example pos"]
    mask: Bool[Array, "example pos"]
    request: Bool[Array, "example pos"]
    response: Bool[Array, "example pos"]
    harmful: Bool[Array, " example"]

    def take(self, rows: Int[np.ndarray, " row"]) -> Texts:
        """Some of the examples."""
        return jax.tree.map(lambda array: array[rows], self)

    def predicts(self) -> Bool[Array, "example pos-1"]:
        """The tokens of the response that predict another token of the response."""
        return self.response[:, :-1] & self.response[:, 1:]


def texts_of(data: LabelledTokens) -> Texts:
    """The examples as one batch, on the host.

    Args:
      data: requests with responses.

    Raises:
      UserError: a span is missing or empty, a response is one token long, padding is in a span, or there are not two
        classes.
    """
    if missing := [name for name in (REQUEST, RESPONSE) if name not in data.spans]:
        raise UserError(f"{data.name} has no span {missing[0]!r}; it has {', '.join(data.spans) or 'none'}")
    if len(data.classes) != 2:
        raise UserError(f"{data.name} has the classes {', '.join(data.classes) or 'none'}: give benign and harmful")
    if not len(data):
        raise UserError(f"{data.name} has no examples")
    request, response = (np.asarray(data.spans[name], bool) for name in (REQUEST, RESPONSE))
    for name, span in ((REQUEST, request), (RESPONSE, response)):
        if (span & ~data.mask).any():
            raise UserError(f"{data.name}: the span {name!r} of example {_first(span & ~data.mask)} has padding in it")
    if not request.any(axis=1).all():
        raise UserError(f"{data.name}: example {int(np.argmin(request.any(axis=1)))} has no request")
    found = Texts(data.tokens, data.mask, request, response, np.asarray(data.labels) == 1)  # type: ignore[arg-type]
    if not (some := np.asarray(found.predicts()).any(axis=1)).all():
        raise UserError(
            f"{data.name}: the response of example {int(np.argmin(some))} predicts none of its own tokens. It begins "
            "with the token before its first word"
        )
    return found


def _first(where: np.ndarray) -> int:
    return int(np.argmax(where.any(axis=1)))


def draws(data: LabelledTokens, size: int, seed: int, *, balanced: bool = False) -> Callable[[int], Texts]:
    """A function from the number of a step to a random batch. A step always gets the same batch.

    Args:
      data: the examples to draw from, with replacement.
      size: the number of examples in a batch.
      seed: the seed of the draws.
      balanced: whether half of each batch is harmful.

    Raises:
      UserError: the batch is balanced, and a class is empty.
    """
    texts = texts_of(data)
    classes = [np.flatnonzero(texts.harmful == kind) for kind in (False, True)] if balanced else [np.arange(len(data))]
    if size < len(classes) or not all(len(rows) for rows in classes):
        raise UserError(f"{data.name}: a batch of {size} needs harmful and benign examples, and one of each at least")

    def batch_at(step: int) -> Texts:
        rng = np.random.default_rng((seed, step))
        sizes = (size - size // 2, size // 2) if balanced else (size,)
        return texts.take(np.concatenate([rng.choice(rows, n) for rows, n in zip(classes, sizes)]))

    return batch_at


@dataclasses.dataclass(frozen=True, eq=False)
class DefenceData:
    """The examples that defences are trained and compared on. The sets have no example in common.

    Args:
      train: harmful and benign examples to train detectors and adapters on.
      retain: benign examples on which an adapted model should stay as it was.
      control: benign examples that thresholds are chosen on.
      harmful: harmful examples to test on.
      benign: benign examples to test on, by name.
    """

    train: LabelledTokens
    retain: LabelledTokens
    control: LabelledTokens
    harmful: LabelledTokens
    benign: dict[str, LabelledTokens]

    def __post_init__(self) -> None:
        for data, kind in (
            (self.retain, 0),
            (self.control, 0),
            (self.harmful, 1),
            *((d, 0) for d in self.benign.values()),
        ):
            if (np.asarray(data.labels) != kind).any():
                raise UserError(f"{data.name} should have {'harmful' if kind else 'benign'} examples only")


def wide(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """A value as float32."""
    return jnp.asarray(x, jnp.float32)
