"""Black-box monitors: they see the text, and not the values inside the model that they watch.

Surprise(model)                                     how unlikely the text is to a model
answer_monitor(trusted, tokenizer, "Is this ...?")  what a model answers to a question about the text
bag_of_words(train)                                 a classifier of token counts
FunctionMonitor("length", lambda data: ...)         any function
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.logistic import fit_logistic
from jax_interp.core.objectives import cross_entropy
from jax_interp.core.pytrees import register_dataclass
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.monitors.monitor import FREE, Cost, ModelMonitor, Monitor, forward_cost, masked, shifted
from jax_interp.probes.token_rules import ALL, TokenRule, tokens_of
from jax_interp.surgery import Model

_static: dict[str, Any] = {"metadata": {"static": True}}


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Surprise(ModelMonitor):
    """The mean of -log p(token | the tokens before it), in nats, over the tokens that count.

    The first token of a text has no prediction and does not count.

    Args:
      model: the language model that reads the text.
      rule: the tokens that count.
      name: the name in tables.
      cost: the cost of its forward pass; `forward_cost(model)` estimates it.
      batch: the number of examples in one forward pass.
    """

    model: Model
    rule: TokenRule = dataclasses.field(default=ALL, **_static)
    name: str = dataclasses.field(default="surprise", **_static)
    cost: Cost = dataclasses.field(default=FREE, **_static)
    batch: int = dataclasses.field(default=32, **_static)

    def score(
        self,
        tokens: Int[Array, "example pos"],
        mask: Bool[Array, "example pos"] | None,
        read: Bool[Array, "example pos"],
        shift: Float[Array, "example pos d"] | None = None,
    ) -> Float[Array, " example"]:
        loss = cross_entropy(shifted(self.model, shift)(tokens, **masked(mask))[:, :-1], tokens[:, 1:])
        counted = _predicted(read, mask)
        return jnp.sum(jnp.where(counted, loss, 0.0), axis=1) / jnp.sum(counted, axis=1).astype(loss.dtype)

    def _scores(self, data: LabelledTokens) -> Float[np.ndarray, " example"]:
        if not (some := np.asarray(_predicted(tokens_of(self.rule, data), data.mask)).any(axis=1)).all():
            raise UserError(
                f"{self.name}: in example {int(np.argmin(some))} of {data.name} only the first token counts, and it "
                "has no prediction"
            )
        return super()._scores(data)


def _predicted(read: Any, mask: Any) -> Any:
    """The tokens that count and have a real token before them, without the first column."""
    return read[:, 1:] if mask is None else read[:, 1:] & mask[:, :-1]


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class AnswerMonitor(ModelMonitor):
    """The model reads the text and then a question: the logit of "yes" minus the logit of "no".

    `answer_monitor` makes it from strings. The model reads the whole text.

    Args:
      model: the language model that answers.
      question: the tokens of the question. They follow the last real token of each text.
      yes: the token of the suspicious answer.
      no: the token of the other answer.
      rule: not used: the answer depends on the whole text.
      name: the name in tables.
      cost: the cost of its forward pass.
      batch: the number of examples in one forward pass.
    """

    model: Model
    question: Int[Array, " pos"]
    yes: Int[Array, ""]
    no: Int[Array, ""]
    rule: TokenRule = dataclasses.field(default=ALL, **_static)
    name: str = dataclasses.field(default="answer", **_static)
    cost: Cost = dataclasses.field(default=FREE, **_static)
    batch: int = dataclasses.field(default=32, **_static)

    def score(
        self,
        tokens: Int[Array, "example pos"],
        mask: Bool[Array, "example pos"] | None,
        read: Bool[Array, "example pos"],
        shift: Float[Array, "example pos d"] | None = None,
    ) -> Float[Array, " example"]:
        asked, (rows, length) = self.question.size, tokens.shape
        position = jnp.arange(length, dtype=jnp.int32)[None, :]
        real = jnp.ones(tokens.shape, bool) if mask is None else mask
        ends = jnp.max(jnp.where(real, position, -1), axis=1) + 1
        places = ends[:, None] + jnp.arange(asked, dtype=jnp.int32)[None, :]
        row = jnp.arange(rows)[:, None]
        longer = jnp.pad(tokens, ((0, 0), (0, asked)))
        longer = longer.at[row, places].set(self.question[None, :].astype(tokens.dtype))
        whole = None if mask is None else jnp.pad(mask, ((0, 0), (0, asked))).at[row, places].set(True)
        if shift is not None:
            shift = jnp.pad(shift, ((0, 0), (0, asked), (0, 0)))
        logits = shifted(self.model, shift)(longer, **masked(whole))
        last = upcast(logits[jnp.arange(rows), ends + asked - 1])
        return last[:, self.yes] - last[:, self.no]


def answer_monitor(
    model: Model,
    tokenizer: Tokenizer,
    question: str,
    *,
    yes: str = " yes",
    no: str = " no",
    name: str = "answer",
    cost: Cost | None = None,
) -> AnswerMonitor:
    """A monitor that asks a model about the text.

    Args:
      model: the language model that answers: the watched one, or a smaller one that is trusted.
      tokenizer: its tokenizer.
      question: what follows the text, up to the answer, such as "\\nIs this harmful? Answer:".
      yes: the suspicious answer: one token.
      no: the other answer: one token.
      name: the name in tables.
      cost: the cost of scoring. None: `forward_cost(model)`, with the question.

    Raises:
      UserError: the question is empty, or an answer is not one token, or they are the same token.
    """
    asked = tokenizer.encode(question, bos=False)
    answers = [tokenizer.encode(text, bos=False) for text in (yes, no)]
    if not asked:
        raise UserError("the question has no token")
    for text, ids in zip((yes, no), answers, strict=True):
        if len(ids) != 1:
            raise UserError(f"the answer {text!r} has {len(ids)} tokens: give one of a single token")
    if answers[0] == answers[1]:
        raise UserError(f"both answers are the token {answers[0][0]}")
    if cost is None:
        per_token = forward_cost(model).per_token
        cost = Cost(per_example=per_token * len(asked), per_token=per_token)
    of_yes, of_no = (jnp.asarray(ids[0], jnp.int32) for ids in answers)
    return AnswerMonitor(model, jnp.asarray(asked, jnp.int32), of_yes, of_no, name=name, cost=cost)


@dataclasses.dataclass(frozen=True, eq=False)
class BagOfWords(Monitor):
    """A logistic classifier of log(1 + count) of each token. `bag_of_words` fits it.

    Args:
      weight: the weight of each token.
      bias: the bias.
      rule: the tokens that count.
      name: the name in tables.
      cost: the cost of scoring.
    """

    weight: Float[np.ndarray, " vocab"]
    bias: float
    rule: TokenRule = ALL
    name: str = "bag of words"
    cost: Cost = FREE

    def _scores(self, data: LabelledTokens) -> Float[np.ndarray, " example"]:
        known = np.arange(len(self.weight))
        return _counts(data, self.rule, known) @ self.weight.astype(np.float64) + self.bias


def bag_of_words(
    train: LabelledTokens, *, rule: TokenRule = ALL, C: float = 1.0, name: str = "bag of words"
) -> BagOfWords:
    """Fit a classifier of token counts.

    Args:
      train: examples of two classes. The second one is the suspicious one.
      rule: the tokens that count.
      C: the inverse strength of the L2 penalty.
      name: the name in tables.

    Raises:
      UserError: there are not two classes, or examples of one class only.
    """
    positive = positives(train)
    known = np.unique(train.tokens[tokens_of(rule, train)])
    x = jnp.asarray(_counts(train, rule, known), jnp.float32)
    found = fit_logistic(x[None], jnp.asarray(positive)[None], C=C)
    weight = np.zeros(int(known[-1]) + 1, np.float32)
    weight[known] = np.asarray(found.weight[0])
    return BagOfWords(weight, float(found.intercept[0]), rule, name, Cost(per_token=2.0))


def _counts(
    data: LabelledTokens, rule: TokenRule, known: Int[np.ndarray, " word"]
) -> Float[np.ndarray, "example word"]:
    """log(1 + count) of the known tokens. Other tokens are left out."""
    read = tokens_of(rule, data)
    at = np.searchsorted(known, data.tokens)
    at = np.where((at < len(known)) & (known[np.minimum(at, len(known) - 1)] == data.tokens) & read, at, len(known))
    counts = np.zeros((len(data), len(known) + 1))
    np.add.at(counts, (np.arange(len(data))[:, None], at), 1.0)
    return np.log1p(counts[:, :-1])


@dataclasses.dataclass(frozen=True, eq=False)
class FunctionMonitor(Monitor):
    """Any function of the examples, such as the grades of another system.

    Args:
      name: the name in tables.
      function: from examples to one score each.
      cost: the cost of scoring.
    """

    name: str
    function: Callable[[LabelledTokens], Any]
    cost: Cost = FREE

    def _scores(self, data: LabelledTokens) -> Float[np.ndarray, " example"]:
        return np.asarray(self.function(data))


def positives(data: LabelledTokens) -> Bool[np.ndarray, " example"]:
    """Whether each example is of the second class, the suspicious one.

    Raises:
      UserError: the examples do not have two classes.
    """
    if len(data.classes) != 2:
        raise UserError(
            f"{data.name} has {len(data.classes)} classes: a monitor tells two apart, benign and suspicious"
        )
    return np.asarray(data.labels) == 1
